//! `api`: `GET /v1/vms/{id}` over HTTPS, with the load generator on the same machine. Each connection asks
//! for a VM of its own. Then very many calls in flight at the same moment.

use std::ffi::OsStr;

use anyhow::Context;

use super::load::Seen;
use super::process::{self, Watch};
use super::{Bench, flight};
use crate::cluster::{Cluster, Setup};
use crate::cmd;

const CONNECTIONS: u32 = 64;
const SECONDS: &str = "10";

/// Measures; with so many calls in flight at once, one number after the other.
///
/// # Errors
/// When the controller does not start or a request fails.
pub async fn run(sizes: &[usize]) -> anyhow::Result<()> {
    process::allow_files()?;
    let mut bench = Bench::begin("api")?;
    let host = Some((256, shared::units::Bytes::gib(4096)));
    let cluster = Cluster::start_with(Setup { process: true, host, ..Setup::default() }).await?;
    cluster.host().await?;
    let (image, network) = (cluster.image().await?, cluster.network().await?);
    let mut paths = Vec::new();
    for _ in 0..CONNECTIONS {
        paths.push(format!("/v1/vms/{}", cluster.vm(&image, &network).await?.id));
    }
    let pid = cluster.pid().context("the controller is a process")?;
    let watch = Watch::of(pid)?;
    let config = cluster.cli_config();
    let (vms, paths) = (paths.clone(), paths.join(","));
    let program = cmd::program("kring-bench")?;
    let arguments: [&OsStr; 7] = [
        "load".as_ref(),
        "--config".as_ref(),
        config.as_os_str(),
        "--paths".as_ref(),
        paths.as_ref(),
        "--seconds".as_ref(),
        SECONDS.as_ref(),
    ];
    let seen: Seen = serde_json::from_str(&cmd::run(program.as_os_str(), &arguments).await?)?;
    let each = watch.spent()?.each(usize::try_from(seen.requests)?);
    bench.figure("GET /v1/vms/{id}, 64 connections", seen.requests as f64 / seen.seconds, "1/s", "at least 15,000");
    bench.figure("median", seen.p50_us / 1000.0, "ms", "");
    bench.figure("99th percentile", seen.p99_us / 1000.0, "ms", "under 10");
    bench.figure("CPU of the controller, each", each.cpu * 1e6, "µs", "");
    flight::run(&mut bench, &cluster, &vms, sizes).await?;
    cluster.stop().await?;
    if let Some(most) = sizes.iter().max() {
        flight::beyond(&mut bench, *most).await?;
    }
    bench.end()
}
