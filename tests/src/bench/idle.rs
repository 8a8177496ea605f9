//! `idle`: what a controller with one host costs while nothing happens.

use std::time::Duration;

use anyhow::Context;

use super::{Bench, process};
use crate::cluster::{Cluster, Setup};

const WATCHED: Duration = Duration::from_secs(30);

/// Measures.
///
/// # Errors
/// When the controller does not start.
pub async fn run() -> anyhow::Result<()> {
    let mut bench = Bench::begin("idle")?;
    let cluster = Cluster::start_with(Setup { process: true, ..Setup::default() }).await?;
    cluster.host().await?;
    cluster.set("host.ping_interval", 10.into()).await?;
    let pid = cluster.pid().context("the controller is a process")?;
    let before = process::cpu_seconds(pid)?;
    tokio::time::sleep(WATCHED).await;
    let share = (process::cpu_seconds(pid)? - before) / WATCHED.as_secs_f64();
    bench.figure(
        "controller, resident memory",
        process::resident(pid)? as f64 / f64::from(1 << 20),
        "MiB",
        "at most 60",
    );
    bench.figure("controller, share of a core", share * 100.0, "%", "at most 0.5");
    cluster.stop().await?;
    bench.end()
}
