//! The only place of the tests that starts processes: built programs of Kring, killed with their owner.

use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::wait::until;

/// A built program. `KRING_CONTROLLER` and its like (`KRING_` and the name's last word) name another
/// file than the one beside the test binary.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let variable = format!("KRING_{}", name.trim_start_matches("kring-").to_uppercase());
    if let Some(path) = std::env::var_os(&variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // target/<profile>/deps/<test>, or target/<profile>/<program>.
    let found = own.ancestors().skip(1).take(3).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: cargo build -p {name}, or set {variable}"))
}

/// An address on which a program can listen, and again after it was killed: the kernel gives no connection a port
/// below 32768.
///
/// # Errors
/// When none is free.
pub fn free_address(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    let any = || SocketAddr::new(ip, rand::random_range(20_000..32_000));
    let free = (0..100).map(|_| any()).find(|address| TcpListener::bind(address).is_ok());
    free.with_context(|| format!("no port of {ip} is free"))
}

fn command(program: &OsStr, args: &[&OsStr]) -> Command {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a program to its end and gives what it printed.
///
/// # Errors
/// When it fails; with what it said.
pub async fn run(program: &OsStr, args: &[&OsStr]) -> anyhow::Result<String> {
    let output = command(program, args).output().await.with_context(|| format!("starting {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{} ended with {}: {said}", program.display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, blocking; what it prints and how it ends is nobody's business.
pub fn run_to_end(program: &OsStr, args: &[&OsStr]) {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
    let mut command = std::process::Command::new(program);
    // It fails when there is nothing left to do.
    let _ = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// Starts a program that goes on, its output in a file. It is killed when the child is dropped.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(program: &OsStr, args: &[&OsStr], log: &std::path::Path) -> anyhow::Result<Child> {
    start(command(program, args), log)
}

/// The same, with a wall clock that is ahead of this machine's by the seconds that a file says (`+3600`, `-60`); it
/// is read again every second. What measures durations is not touched.
///
/// # Errors
/// When libfaketime is not installed, or the program cannot be started.
pub fn spawn_with_clock(
    program: &OsStr,
    args: &[&OsStr],
    log: &std::path::Path,
    clock: &std::path::Path,
) -> anyhow::Result<Child> {
    let mut command = command(program, args);
    command
        .env("LD_PRELOAD", clock_library()?)
        .env("FAKETIME_TIMESTAMP_FILE", clock)
        .env("FAKETIME_CACHE_DURATION", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("NO_FAKE_STAT", "1");
    start(command, log)
}

/// What stands between a program and the machine's clock.
fn clock_library() -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib")?.flatten();
    let mut files = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    files.find(|file| file.is_file()).context("libfaketime is not installed: tests/lab/install-deps.sh test")
}

fn start(mut command: Command, log: &std::path::Path) -> anyhow::Result<Child> {
    let out = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let err = out.try_clone()?;
    command.stdout(out).stderr(err);
    command.spawn().with_context(|| format!("starting {}", command.as_std().get_program().display()))
}

/// What a program does. When it is told to end (Ctrl-C, `kill`) it gives up, and what it has started is ended and removed.
///
/// # Errors
/// That of the work; when it was told to end.
pub async fn until_told_to_end<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => anyhow::bail!("it was interrupted"),
        _ = terminate.recv() => anyhow::bail!("it was told to end"),
        _ = hangup.recv() => anyhow::bail!("its terminal was closed"),
    }
}

/// Sends a signal (`-STOP`, `-CONT`, `-TERM`) to a process that this one has started.
///
/// # Errors
/// When there is no such process.
pub async fn send_signal(pid: u32, signal: &str) -> anyhow::Result<()> {
    run("kill".as_ref(), &[OsStr::new(signal), pid.to_string().as_ref()]).await.map(drop)
}

/// Stops a process that this one has started, as a debugger does, and waits until all its threads have
/// stopped: a signal that was sent has not been taken yet.
///
/// # Errors
/// When there is no such process, or it does not stop.
pub async fn freeze(pid: u32) -> anyhow::Result<()> {
    send_signal(pid, "-STOP").await?;
    until(&format!("process {pid} stops"), async || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok())
            .all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['T', 't'])))
    })
    .await
}
