//! `restart`: a controller with very many VMs is killed and started again.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::seed::{self, Seeded};
use super::{Bench, process};
use crate::cluster::Cluster;

/// A controller that takes less than this part of a core, besides pinging its hosts, has nothing to do.
const QUIET: f64 = 0.2;
/// What a ping takes of a core, in seconds; `hosts` shows how much it is.
const PING: f64 = 0.0003;
/// Time between two looks at it, and how often it has to be so.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS: u32 = 3;
/// How long it is waited for at most; what is measured afterwards is then beside what it still compares.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures with so many VMs, one number after the other, on so many hosts that are pinged in this interval.
///
/// # Errors
/// When anything fails.
pub async fn run(sizes: &[usize], hosts: usize, interval: Duration) -> anyhow::Result<()> {
    process::allow_files()?;
    let mut bench = Bench::begin("restart")?;
    let mut seeded = Seeded::begin(hosts, interval).await?;
    bench.version("database", seeded.cluster.database.version().await?);
    bench.settings_of(&seeded.cluster.api).await?;
    for size in seed::rising(sizes) {
        seeded.grow(size).await?;
        measure(&mut bench, &mut seeded.cluster, size, interval).await?;
    }
    seeded.cluster.stop().await?;
    bench.end()
}

/// From nothing to an API that answers, with all hosts, which are pinged in this interval, heard of afterwards.
pub(super) async fn measure(
    bench: &mut Bench,
    cluster: &mut Cluster,
    size: usize,
    interval: Duration,
) -> anyhow::Result<()> {
    let (begin, killed) = (Instant::now(), cluster.sim.age());
    cluster.run().await?;
    bench.point((size, "VMs"), "restart until ready", begin.elapsed().as_secs_f64(), "s", "at most 5");
    let pid = cluster.pid().context("the controller is a process")?;
    bench.point((size, "VMs"), "restart until ready, CPU", process::cpu_seconds(pid)?, "s", "");
    let memory = process::resident(pid)? as f64;
    bench.point((size, "VMs"), "memory after it", memory / f64::from(1 << 20), "MiB", "at most 1 GB");
    // What each host does is compared with the database when it is first heard of.
    let hosts = cluster.sim.hosts();
    super::hosts::until_heard_of(&hosts, killed).await;
    let pings = hosts.len() as f64 / interval.as_secs_f64() * PING;
    let compared = until_below(pid, pings + QUIET).await?.duration_since(begin);
    bench.point((size, "VMs"), "restart until every VM was compared", compared.as_secs_f64(), "s", "");
    bench.point((size, "VMs"), "restart until every VM was compared, CPU", process::cpu_seconds(pid)?, "s", "");
    let most = process::most_resident(pid)? as f64;
    bench.point((size, "VMs"), "most memory until then", most / f64::from(1 << 20), "MiB", "at most 1 GB");
    Ok(())
}

/// Waits until a process takes no more than this part of a core; answers since when.
async fn until_below(pid: u32, part: f64) -> anyhow::Result<Instant> {
    let (begin, mut quiet, mut since) = (Instant::now(), 0, Instant::now());
    while quiet < LOOKS && begin.elapsed() < PATIENCE {
        let before = process::cpu_seconds(pid)?;
        tokio::time::sleep(LOOK).await;
        let busy = process::cpu_seconds(pid)? - before > LOOK.as_secs_f64() * part;
        quiet = if busy { 0 } else { quiet + 1 };
        if busy {
            since = Instant::now();
        }
    }
    Ok(since)
}
