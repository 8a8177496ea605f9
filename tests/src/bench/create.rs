//! `create`: VMs on simulated hosts, accepted to running as the API shows it. The hosts run in this
//! process, the controller in one of its own, with everything on that it is shipped with.

use std::time::Instant;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};

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
    let pid = cluster.pid().context("the controller is a process")?;
    for &size in sizes {
        let (begin, cpu) = (Instant::now(), process::cpu_seconds(pid)?);
        stream::iter(0..size)
            .map(|_| cluster.vm(&image, &network))
            .buffer_unordered(CLIENTS)
            .try_collect::<Vec<_>>()
            .await?;
        let (took, cpu) = (begin.elapsed().as_secs_f64(), process::cpu_seconds(pid)? - cpu);
        bench.point((size, "VMs"), "all run", took, "s", "0.015, 0.2, 1, 10");
        bench.point((size, "VMs"), "each", took * 1000.0 / size as f64, "ms", "");
        bench.point((size, "VMs"), "CPU each", cpu * 1000.0 / size as f64, "ms", "at most 0.7");
    }
    cluster.stop().await?;
    bench.end()
}
