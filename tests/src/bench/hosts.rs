//! `hosts`: what hosts cost on which nothing happens, what many dead ones do to the others, and how long
//! a restarted controller needs to have heard of every one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::api::page::Page;

use super::process::{self, Watch};
use super::{Bench, floor};
use crate::cluster::{Cluster, Setup};
use crate::sim;

/// Hosts that join at a time.
const JOINS: usize = 32;
/// One of so many hosts dies.
const DEAD: usize = 10;
/// How long a busy controller is asked again for a token.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Measures with so many hosts, one number after the other, each pinged in this interval.
///
/// # Errors
/// When anything fails.
pub async fn run(sizes: &[usize], interval: Duration) -> anyhow::Result<()> {
    process::allow_files()?;
    let mut bench = Bench::begin("hosts")?;
    let mut cluster = Cluster::start_with(Setup { process: true, ..Setup::default() }).await?;
    bench.version("database", cluster.database.version().await?);
    cluster.set("host.ping_interval", interval.as_secs_f64().into()).await?;
    bench.settings_of(&cluster.api).await?;
    let bare = BeforeHosts {
        sockets: process::sockets(cluster.pid().context("the controller is a process")?)?,
        simulator: process::resident(std::process::id())?,
    };
    for size in sizes {
        join(&mut bench, &cluster, *size).await?;
        rest(&mut bench, &cluster, &bare, interval).await?;
        die(&mut bench, &cluster, interval).await?;
        restart(&mut bench, &mut cluster).await?;
    }
    cluster.stop().await?;
    bench.end()
}

/// What there is without hosts.
struct BeforeHosts {
    /// Open sockets of the controller: listeners, and the connections of this program.
    sockets: usize,
    /// Memory of this program, in bytes.
    simulator: u64,
}

/// As many hosts as are missing join, like real ones.
async fn join(bench: &mut Bench, cluster: &Cluster, size: usize) -> anyhow::Result<()> {
    let pid = cluster.pid().context("the controller is a process")?;
    let (watch, missing) = (Watch::of(pid)?, size - cluster.sim.hosts().len());
    join_all(cluster, missing).await?;
    let each = watch.spent()?.each(missing);
    bench.figure(format!("{size} hosts: joined a second"), 1.0 / each.wall, "", "");
    bench.point((size, "hosts"), "CPU each join", each.cpu * 1000.0, "ms", "");
    Ok(())
}

/// So many more hosts join, until all are connected.
pub(super) async fn join_all(cluster: &Cluster, more: usize) -> anyhow::Result<()> {
    stream::iter(0..more)
        .map(|_| async { cluster.sim.join(&token(cluster).await?).await })
        .buffer_unordered(JOINS)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    until_counted(cluster, "connected", cluster.sim.hosts().len()).await
}

/// A token to join with. A controller that is busy says so, and is asked again.
async fn token(cluster: &Cluster) -> anyhow::Result<String> {
    let asked = Instant::now();
    loop {
        match cluster.api.join_token().await {
            Ok(token) => return Ok(token.token),
            Err(busy) if busy.code().is_transient() && asked.elapsed() < PATIENCE => {
                tokio::time::sleep(LOOK).await;
            }
            Err(other) => return Err(other.into()),
        }
    }
}

/// Nothing happens for an interval.
async fn rest(bench: &mut Bench, cluster: &Cluster, bare: &BeforeHosts, interval: Duration) -> anyhow::Result<()> {
    let pid = cluster.pid().context("the controller is a process")?;
    let hosts = cluster.sim.hosts();
    let size = hosts.len();
    // Each has its own moment from its first ping on, which is within an interval after its joining.
    tokio::time::sleep(interval).await;
    let (watch, before) = (Watch::of(pid)?, pings(&hosts));
    let mut sockets = Vec::new();
    while watch.elapsed() < interval {
        tokio::time::sleep(LOOK).await;
        sockets.push(u32::try_from(process::sockets(pid)?.saturating_sub(bare.sockets))?);
    }
    let spent = watch.spent()?;
    let each = spent.each(usize::try_from(pings(&hosts) - before)?);
    sockets.sort_unstable();
    bench.figure(format!("{size} hosts: pings a second"), 1.0 / each.wall, "", "");
    bench.point((size, "hosts"), "CPU each ping", each.cpu * 1e6, "µs", "");
    bench.figure(format!("{size} hosts: CPU each ping, of the simulated host"), each.bench * 1e6, "µs", "");
    let floor = floor::pings::measure(cluster, &hosts).await?;
    bench.point((size, "hosts"), "CPU each ping, of a bare program", floor * 1e6, "µs", "");
    bench.point((size, "hosts"), "times the bare program's CPU", each.cpu / floor, "", "");
    bench.point((size, "hosts"), "of a core", spent.cpu / spent.wall * 100.0, "%", "at most 40");
    let memory = process::resident(pid)? as f64;
    bench.point((size, "hosts"), "memory", memory / f64::from(1 << 20), "MiB", "at most 1 GB");
    bench.figure(format!("{size} hosts: open sockets to hosts, p50"), super::quantile(&sockets, 0.5), "", "");
    bench.figure(format!("{size} hosts: open sockets to hosts, fewest"), super::quantile(&sockets, 0.0), "", "0");
    let simulator = process::resident(std::process::id())?.saturating_sub(bare.simulator) as f64;
    bench.figure(format!("{size} hosts: memory of the simulator, each"), simulator / 1024.0 / size as f64, "KiB", "10");
    Ok(())
}

/// Some hosts take connections and say nothing any more.
async fn die(bench: &mut Bench, cluster: &Cluster, interval: Duration) -> anyhow::Result<()> {
    let hosts = cluster.sim.hosts();
    let (dead, alive): (Vec<_>, Vec<_>) = hosts.iter().enumerate().partition(|(n, _)| n % DEAD == 0);
    for (_, host) in &alive {
        host.pings.take_longest();
    }
    let (begin, dropped) = (Instant::now(), process::dropped_connections()?);
    dead.iter().for_each(|(_, host)| host.freeze());
    until_counted(cluster, "disconnected", dead.len()).await?;
    let noticed = begin.elapsed().as_secs_f64() / interval.as_secs_f64();
    let of = (hosts.len(), "hosts");
    bench.point(of, "one in ten dead, all noticed after", noticed, "interv.", "at most 3");
    let longest = alive.iter().map(|(_, host)| host.pings.take_longest()).max().unwrap_or_default();
    let late = longest.saturating_sub(interval).as_secs_f64();
    bench.point(of, "one in ten dead, latest ping of another", late, "s", "at most 1");
    // Each of these is tried again by the kernel, a second later.
    let dropped = (process::dropped_connections()? - dropped) as f64;
    bench.point(of, "one in ten dead, connections dropped at full queues", dropped, "", "");
    dead.iter().for_each(|(_, host)| host.thaw());
    until_counted(cluster, "connected", hosts.len()).await
}

/// The controller is killed and started again.
async fn restart(bench: &mut Bench, cluster: &mut Cluster) -> anyhow::Result<()> {
    let hosts = cluster.sim.hosts();
    cluster.kill().await?;
    let (begin, killed) = (Instant::now(), cluster.sim.age());
    cluster.run().await?;
    let ready = begin.elapsed().as_secs_f64();
    until_heard_of(&hosts, killed).await;
    let of = (hosts.len(), "hosts");
    bench.point(of, "restarted controller ready", ready, "s", "");
    let all = begin.elapsed().as_secs_f64();
    bench.point(of, "restarted, every one confirmed", all, "s", "at most 90");
    let pid = cluster.pid().context("the controller is a process")?;
    bench.point(of, "restarted, every one confirmed, CPU", process::cpu_seconds(pid)?, "s", "");
    Ok(())
}

/// Waits until each host was pinged after this age of the simulation.
pub(super) async fn until_heard_of(hosts: &[Arc<sim::Host>], age: Duration) {
    while hosts.iter().any(|host| host.pings.last() <= age) {
        tokio::time::sleep(LOOK).await;
    }
}

fn pings(hosts: &[Arc<sim::Host>]) -> u64 {
    hosts.iter().map(|host| host.pings.count()).sum()
}

/// Waits until so many hosts have this connection.
async fn until_counted(cluster: &Cluster, connection: &str, wanted: usize) -> anyhow::Result<()> {
    let path = format!("/v1/hosts?q=connection={connection}&count=true&limit=1&fields=id");
    loop {
        let page: Page<serde_json::Value> = cluster.api.get(&path).await?;
        if page.count.is_some_and(|count| count >= wanted as u64) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}
