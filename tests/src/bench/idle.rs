//! `idle`: what a controller with one host, and the agent of that host, cost while nothing happens. The
//! host is a real one of the lab where there can be one, else a simulated one.

use std::time::Duration;

use anyhow::Context;

use super::host::{Real, missing};
use super::{Bench, process};
use crate::cluster::{Cluster, Setup};

/// Measures for so long.
///
/// # Errors
/// When the controller or the agent does not start.
#[expect(clippy::print_stdout, reason = "printing is what a benchmark is for")]
pub async fn run(length: Duration) -> anyhow::Result<()> {
    let mut bench = Bench::begin("idle")?;
    match missing() {
        None => {
            let real = Real::start().await?;
            let controller = real.cluster.pid().context("the controller is a process")?;
            watch(&mut bench, &[(controller, CONTROLLER), (real.agent, AGENT)], length).await?;
            real.stop().await?;
        }
        Some(missing) => {
            println!("idle  without an agent: a host cannot be made here: {missing}");
            let cluster = Cluster::start_with(Setup { process: true, ..Setup::default() }).await?;
            cluster.host().await?;
            cluster.set("host.ping_interval", 10.into()).await?;
            let controller = cluster.pid().context("the controller is a process")?;
            watch(&mut bench, &[(controller, CONTROLLER)], length).await?;
            cluster.stop().await?;
        }
    }
    bench.end()
}

/// A program, and what is asked of its memory and its share of a core.
type Asked = [&'static str; 3];

const CONTROLLER: Asked = ["controller", "at most 60", "at most 0.5"];
const AGENT: Asked = ["agent", "at most 25", "at most 0.2"];

async fn watch(bench: &mut Bench, processes: &[(u32, Asked)], length: Duration) -> anyhow::Result<()> {
    let before = processes.iter().map(|(pid, _)| process::cpu_seconds(*pid)).collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep(length).await;
    for ((pid, [name, memory, core]), before) in processes.iter().zip(before) {
        let share = (process::cpu_seconds(*pid)? - before) / length.as_secs_f64();
        let resident = process::resident(*pid)? as f64 / f64::from(1 << 20);
        bench.figure(format!("{name}, resident memory"), resident, "MiB", memory);
        bench.figure(format!("{name}, share of a core"), share * 100.0, "%", core);
    }
    Ok(())
}
