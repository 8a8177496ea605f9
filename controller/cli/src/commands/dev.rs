//! `kring dev`: a cloud to try things on. The controller is a real one; its hosts are simulated, by the
//! same program that the benchmarks of Kring use.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use tokio::process::Child;
use tokio::time::Instant;

use crate::cli::Global;
use crate::client::Call;
use crate::cmd;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::{line, note};

/// Port of the API where nothing else has it.
const USUAL: u16 = 8443;
/// How long the controller may take to answer, and each host to join.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// `kring dev`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kring dev\n  kring dev --hosts 1000 --port 9443")]
pub struct Dev {
    /// How many hosts there are
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    pub hosts: u32,
    /// Port of the API on 127.0.0.1; without it 8443, or a free one
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
}

/// The port that is asked for, or the usual one, or any: a controller that is installed here has the usual one.
fn port(asked: Option<u16>) -> u16 {
    asked.unwrap_or_else(|| free(USUAL).or_else(|_| free(0)).unwrap_or(USUAL))
}

/// This port, when it is free; any, when it is 0.
fn free(port: u16) -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr()?.port())
}

/// Runs until Ctrl-C, and leaves nothing behind.
pub async fn run(global: &Global, args: Dev) -> Result<()> {
    let (controller, simulator) = (cmd::find("kring-controller")?, cmd::find("kring-sim")?);
    let folder = tempfile::Builder::new().prefix("kring-dev-").tempdir();
    let folder = folder.map_err(|source| CliError::Io { doing: "making a folder".into(), source })?;
    let (data, log) = (folder.path().join("data"), folder.path().join("kring-dev.log"));
    // Not the machine's own configuration: a controller may be installed here, and be part of a cloud.
    let config = folder.path().join("controller.toml");
    std::fs::write(&config, "").map_err(|source| CliError::Io { doing: "writing a file".into(), source })?;
    let (file, listen) = (folder.path().join("cli.toml"), format!("127.0.0.1:{}", port(args.port)));
    let advertise = format!("api.advertise=[\"https://{listen}\"]");
    let common: [&OsStr; 8] = [
        "--config".as_ref(),
        config.as_os_str(),
        "--data-dir".as_ref(),
        data.as_os_str(),
        "--listen".as_ref(),
        listen.as_ref(),
        "--set".as_ref(),
        advertise.as_ref(),
    ];
    let init: [&OsStr; 3] = ["init".as_ref(), "--cli-config".as_ref(), file.as_os_str()];
    ended_well(cmd::start(&controller, &[&common[..], &init[..]].concat(), &log)?, &log).await?;
    let mut serving = cmd::start(&controller, &[&common[..], &["serve".as_ref()]].concat(), &log)?;
    let mut global = global.clone();
    global.connection.config = Some(file.clone());
    let ctx = Ctx::new(&global)?;
    let wanted = args.hosts.to_string();
    let control = free(0).map_err(|source| CliError::Io { doing: "looking for a port".into(), source })?.to_string();
    let hosts: [&OsStr; 6] = [
        "--config".as_ref(),
        file.as_os_str(),
        "--hosts".as_ref(),
        wanted.as_ref(),
        "--control".as_ref(),
        control.as_ref(),
    ];
    until(&mut serving, &log, PATIENCE, async || ctx.client.send(Call::get("/hosts")).await.is_ok()).await?;
    note(&format!("the controller answers at https://{listen}; {wanted} hosts join"));
    let mut simulating = cmd::start(&simulator, &hosts, &log)?;
    let connected = async || {
        let count = ctx.client.count("/hosts", Some("connection = connected")).await;
        count.is_ok_and(|count| count >= u64::from(args.hosts))
    };
    until(&mut simulating, &log, PATIENCE + LOOK * args.hosts, connected).await?;
    line(&format!(
        "A controller with {wanted} simulated hosts. In another terminal:\n\n  export KRING_CONFIG={}\n  kring image create tiny --url http://images.example/tiny.qcow2\n  kring network create lan --cidr 10.77.0.0/24\n  kring vm create one --image tiny --vcpus 1 --memory 256MiB --network lan\n\nWeb API  https://{listen}/v1, described on https://{listen}/docs\nHosts    http://127.0.0.1:{control}/hosts: what happens to them is said there (man kring-sim)\nLog      {}\nCtrl-C ends it and removes everything.",
        file.display(),
        log.display()
    ))?;
    let ended = tokio::select! {
        ended = serving.wait() => ended,
        ended = simulating.wait() => ended,
        // Both hear it as well, and their folder goes with this function.
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    Err(failed(
        &format!("a program ended: {}", ended.map_or_else(|e| e.to_string(), |status| status.to_string())),
        &log,
    ))
}

/// Looks again and again while `child` lives.
async fn until(child: &mut Child, log: &Path, patience: Duration, mut look: impl AsyncFnMut() -> bool) -> Result<()> {
    let end = Instant::now() + patience;
    while !look().await {
        match child.try_wait() {
            Ok(None) if Instant::now() < end => tokio::time::sleep(LOOK).await,
            Ok(None) => return Err(failed("it takes too long", log)),
            Ok(Some(status)) => return Err(failed(&format!("it ended with {status}"), log)),
            Err(source) => return Err(CliError::Io { doing: "watching a program".into(), source }),
        }
    }
    Ok(())
}

async fn ended_well(mut child: Child, log: &Path) -> Result<()> {
    let status =
        child.wait().await.map_err(|source| CliError::Io { doing: "preparing the controller".into(), source })?;
    if status.success() { Ok(()) } else { Err(failed(&format!("it ended with {status}"), log)) }
}

/// The end of the log says why; it would be gone with its folder.
fn failed(what: &str, log: &Path) -> CliError {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(10)..].join("\n");
    CliError::Conflict {
        message: format!("the cloud to try things on could not be run: {what}\n{end}"),
        hint: "is the port free? --port takes another one".to_string(),
    }
}
