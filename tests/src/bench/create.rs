//! `create`: VMs on simulated hosts, accepted to running as the API shows it. The hosts run in this
//! process, the controller in one of its own, with everything on that it is shipped with.

use std::time::Instant;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::api::image::Image;
use shared::api::network::Network;

use super::{Bench, process};
use crate::cluster::{Cluster, Setup};

/// Clients that make VMs at a time.
const CLIENTS: usize = 100;

/// Measures, at these numbers of VMs on so many hosts.
///
/// # Errors
/// When anything fails.
pub async fn run(sizes: &[usize], hosts: usize) -> anyhow::Result<()> {
    let mut bench = Bench::begin("create")?;
    let host = Some((256, shared::units::Bytes::gib(4096)));
    let cluster = Cluster::start_with(Setup { process: true, host, ..Setup::default() }).await?;
    stream::iter(0..hosts).map(|_| cluster.host()).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    cluster.set("host.ping_interval", 10.into()).await?;
    let (image, network) = (cluster.image().await?, cluster.network_in("10.64.0.0/12").await?);
    for &size in sizes {
        let made = make(&cluster, &image, &network, size).await?;
        bench.point((size, "VMs"), "all run", made.each_ms * size as f64 / 1000.0, "s", "0.015, 0.2, 1, 10");
        bench.point((size, "VMs"), "each", made.each_ms, "ms", "");
        bench.point((size, "VMs"), "CPU each", made.cpu_each_ms, "ms", "at most 0.7");
    }
    cluster.stop().await?;
    bench.end()
}

/// What VMs took, each.
pub(super) struct Made {
    pub(super) each_ms: f64,
    pub(super) cpu_each_ms: f64,
}

/// Makes so many VMs, and waits until the API shows that they run.
pub(super) async fn make(cluster: &Cluster, image: &Image, network: &Network, count: usize) -> anyhow::Result<Made> {
    let pid = cluster.pid().context("the controller is a process")?;
    let (begin, cpu) = (Instant::now(), process::cpu_seconds(pid)?);
    stream::iter(0..count)
        .map(|_| cluster.vm(image, network))
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<_>>()
        .await?;
    let (took, cpu) = (begin.elapsed().as_secs_f64(), process::cpu_seconds(pid)? - cpu);
    Ok(Made { each_ms: took * 1000.0 / count as f64, cpu_each_ms: cpu * 1000.0 / count as f64 })
}
