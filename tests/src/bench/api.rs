//! `api`: `GET /v1/vms/{id}` over HTTPS, with the load generator on the same machine. Each connection asks
//! for a VM of its own. Then very many calls in flight at the same moment.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::Context;

use super::floor::{Bare, PATH, Work};
use super::load::Seen;
use super::process::{self, Spent, Watch};
use super::{Bench, flight};
use crate::cluster::{Cluster, Setup};
use crate::cmd;

/// Connections that ask, one request after the other; what is asked for is asked of the last.
const CONNECTIONS: [usize; 3] = [1, 8, MOST];
const MOST: usize = 64;
/// How long each is asked; figures of a debug build mean nothing.
const SECONDS: &str = if cfg!(debug_assertions) { "1" } else { "10" };

/// Measures; with so many calls in flight at once, one number after the other.
///
/// # Errors
/// When the controller does not start or a request fails.
pub async fn run(sizes: &[usize]) -> anyhow::Result<()> {
    process::allow_files()?;
    let mut bench = Bench::begin("api")?;
    let host = Some((256, shared::units::Bytes::gib(4096)));
    let cluster = Cluster::start_with(Setup { process: true, host, ..Setup::default() }).await?;
    bench.version("database", cluster.database.version().await?);
    cluster.host().await?;
    let (image, network) = (cluster.image().await?, cluster.network().await?);
    let mut paths = Vec::new();
    for _ in 0..MOST {
        paths.push(format!("/v1/vms/{}", cluster.vm(&image, &network).await?.id));
    }
    let pid = cluster.pid().context("the controller is a process")?;
    let bare = Bare::start(Work::default(), None).await?;
    let bare_paths = vec![PATH.to_string(); paths.len()];
    for connections in CONNECTIONS {
        let of = (connections, "connections");
        let asked = |target| if connections == MOST { target } else { "" };
        let (seen, each) = load(pid, &cluster.cli_config(), &paths[..connections]).await?;
        bench.point(of, "GET /v1/vms/{id}", 1.0 / each.wall, "1/s", asked("at least 15,000"));
        bench.point(of, "GET, median", seen.p50_us / 1000.0, "ms", "");
        bench.point(of, "GET, p99", seen.p99_us / 1000.0, "ms", asked("under 10"));
        bench.point(of, "GET, CPU each", each.cpu * 1e6, "µs", "");
        let (seen, of_bare) = load(bare.pid, &bare.cli_config()?, &bare_paths[..connections]).await?;
        bench.point(of, "the same of a bare program", 1.0 / of_bare.wall, "1/s", "");
        bench.point(of, "of a bare program, p99", seen.p99_us / 1000.0, "ms", "");
        bench.point(of, "of a bare program, CPU each", of_bare.cpu * 1e6, "µs", "");
        bench.point(of, "times the bare program's CPU", each.cpu / of_bare.cpu, "", "");
    }
    drop(bare);
    flight::run(&mut bench, &cluster, &paths, sizes).await?;
    cluster.stop().await?;
    if let Some(most) = sizes.iter().max() {
        flight::beyond(&mut bench, *most).await?;
    }
    bench.end()
}

/// Has the load generator ask for these, each on a connection of its own, of the process `pid`.
async fn load(pid: u32, config: &Path, paths: &[String]) -> anyhow::Result<(Seen, Spent)> {
    let (watch, paths) = (Watch::of(pid)?, paths.join(","));
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
    let spent = Spent { wall: seen.seconds, ..watch.spent()? };
    Ok((seen, spent.each(usize::try_from(seen.requests)?)))
}
