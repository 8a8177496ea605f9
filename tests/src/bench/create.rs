//! `create`: VMs on simulated hosts, accepted to running as the API shows it. The hosts run in this
//! process, the controller in one of its own, with everything on that it is shipped with.

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::api::image::Image;
use shared::api::network::Network;

use super::Bench;
use super::floor::{self, Work};
use super::process::{Spent, Watch};
use crate::client::{Call, Client};
use crate::cluster::{Cluster, Setup};

/// Clients that make VMs at a time.
pub(super) const CLIENTS: usize = 100;
/// From so many on, it is told how much more than the least that is needed.
const MANY: usize = 100;

/// Measures, at these numbers of VMs on so many hosts.
///
/// # Errors
/// When anything fails.
pub async fn run(sizes: &[usize], hosts: usize) -> anyhow::Result<()> {
    let mut bench = Bench::begin("create")?;
    let host = Some((256, shared::units::Bytes::gib(4096)));
    let cluster = Cluster::start_with(Setup { process: true, host, ..Setup::default() }).await?;
    bench.version("database", cluster.database.version().await?);
    stream::iter(0..hosts).map(|_| cluster.host()).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    cluster.set("host.ping_interval", 10.into()).await?;
    bench.settings_of(&cluster.api).await?;
    let (image, network) = (cluster.image().await?, cluster.network_in("10.64.0.0/12").await?);
    for &size in sizes {
        let (made, work) = make(&cluster, &image, &network, size).await?;
        let (of, each) = ((size, "VMs"), made.each(size));
        bench.point(of, "all run", made.wall, "s", "0.015, 0.2, 1, 10");
        bench.point(of, "each", each.wall * 1000.0, "ms", "");
        bench.point(of, "CPU each", each.cpu * 1000.0, "ms", "at most 0.7");
        bench.figure(format!("{size} VMs: CPU each, of clients and simulated hosts"), each.bench * 1000.0, "ms", "");
        bench.figure(format!("{size} VMs: CPU each, of the machine"), each.machine * 1000.0, "ms", "");
        if size >= MANY {
            beside(&mut bench, &cluster, size, each, work).await?;
        }
    }
    cluster.stop().await?;
    bench.end()
}

/// The same number of requests, durable writes and commits by a bare program.
async fn beside(bench: &mut Bench, cluster: &Cluster, size: usize, made: Spent, work: Work) -> anyhow::Result<()> {
    let of = (size, "VMs");
    bench.figure(format!("{size} VMs: requests of clients, each"), work.requests as f64, "", "");
    bench.figure(format!("{size} VMs: requests to hosts, each"), work.commands as f64, "", "");
    bench.figure(format!("{size} VMs: durable writes, each"), work.writes as f64, "", "");
    bench.figure(format!("{size} VMs: writes in a commit"), work.together as f64, "", "");
    let floor = floor::measure(work, size, cluster.server_url()).await?.each(size);
    bench.point(of, "the same by a bare program, each", floor.wall * 1000.0, "ms", "");
    bench.point(of, "CPU each of the bare program", floor.cpu * 1000.0, "ms", "");
    bench.point(of, "times the bare program's", made.wall / floor.wall, "", "at most 3");
    bench.point(of, "times the bare program's CPU", made.cpu / floor.cpu, "", "");
    bench.point(of, "CPU each of the machine, with the bare program", floor.machine * 1000.0, "ms", "");
    Ok(())
}

/// What a controller has done since its start, as it counts it itself.
pub(super) struct Counted {
    requests: f64,
    commands: f64,
    writes: f64,
    commits: f64,
}

impl Counted {
    pub(super) async fn of(api: &Client) -> anyhow::Result<Self> {
        let text = api.send(Call::new(reqwest::Method::GET, "/metrics")).await?.text;
        let sum = |name: &str| -> f64 {
            let of =
                text.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with(['{', ' ']));
            of.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Self {
            requests: sum("kring_http_requests_total"),
            commands: sum("kring_host_requests_total"),
            writes: sum("kring_db_writes_total"),
            commits: sum("kring_db_commits_total"),
        })
    }

    /// For each of so many since `before`; pings and the like are few beside them.
    pub(super) fn each(&self, before: &Self, count: usize) -> Work {
        let each = |now: f64, then: f64| ((now - then) / count as f64).round() as u64;
        Work {
            requests: each(self.requests, before.requests),
            commands: each(self.commands, before.commands),
            writes: each(self.writes, before.writes),
            together: ((self.writes - before.writes) / (self.commits - before.commits).max(1.0)).ceil() as u64,
        }
    }
}

/// Makes so many VMs, and waits until the API shows that they run. Answers also what was done for each.
pub(super) async fn make(
    cluster: &Cluster,
    image: &Image,
    network: &Network,
    count: usize,
) -> anyhow::Result<(Spent, Work)> {
    let pid = cluster.pid().context("the controller is a process")?;
    let before = Counted::of(&cluster.api).await?;
    let watch = Watch::of(pid)?;
    stream::iter(0..count)
        .map(|_| cluster.vm(image, network))
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<_>>()
        .await?;
    let made = watch.spent()?;
    let work = Counted::of(&cluster.api).await?.each(&before, count);
    Ok((made, work))
}
