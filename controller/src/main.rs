//! `kring-controller`: the command line of the controller process.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use controller::app::{self, App, Foundation};
use controller::config::{Config, DEFAULT_TOML};
use controller::log;
use tokio::signal::unix::{SignalKind, signal};

/// How a process ends that was fenced.
const FENCED: i32 = 3;

/// The controller of Kring: every service in one process.
#[derive(Parser)]
#[command(name = "kring-controller", version, propagate_version = true)]
struct Args {
    /// Configuration file; default /etc/kring/controller.toml, when it is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with everything that must be kept (the same as --set data_dir=DIR).
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address and port of the API (the same as --set api.listen=ADDRESS).
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Sets one key of the configuration; may be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes what a controller keeps: database, certificate authority, admin account.
    Init {
        /// Where to write a configuration for the command line `kring`, with the admin's token.
        #[arg(long, value_name = "FILE")]
        cli_config: Option<PathBuf>,
    },
    /// Runs the controller.
    Serve,
    /// Makes another token of the admin account and prints it.
    AdminToken,
    /// Prints the default configuration, which is also its manual.
    Config,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if matches!(args.command, Command::Config) {
        std::io::stdout().write_all(DEFAULT_TOML.as_bytes())?;
        return Ok(());
    }
    let mut set = args.set;
    set.extend(args.data_dir.map(|dir| format!("data_dir={}", dir.display())));
    set.extend(args.listen.map(|listen| format!("api.listen={listen}")));
    let config = Config::load(args.config.as_deref(), &set)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match args.command {
            Command::Init { cli_config } => init(config, cli_config.as_deref()).await,
            Command::Serve => serve(config).await,
            Command::AdminToken => {
                let secret = app::new_admin_token(&config).await?;
                Ok(writeln!(std::io::stdout(), "{secret}")?)
            }
            Command::Config => Ok(()),
        }
    })
}

async fn init(config: Config, cli_config: Option<&Path>) -> Result<()> {
    let url = config.client_url();
    let foundation = Foundation::open(config).await?;
    let token = match (foundation.admin_token.clone(), cli_config) {
        (Some(token), _) => token,
        (None, Some(_)) => foundation.new_admin_token().await?,
        (None, None) => {
            return Ok(writeln!(
                std::io::stdout(),
                "already initialised; `kring-controller admin-token` makes another token"
            )?);
        }
    };
    let mut out = std::io::stdout();
    match cli_config {
        None => writeln!(out, "The token of the account admin, shown only now:\n{token}")?,
        Some(path) => {
            write_cli_config(path, &url, foundation.ca_pem(), &token)?;
            writeln!(out, "The command line `kring` finds its way with KRING_CONFIG={}", path.display())?;
        }
    }
    Ok(())
}

/// Writes a configuration for `kring`, readable by its owner only.
fn write_cli_config(path: &Path, url: &str, ca_pem: &str, token: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
    }
    let text = format!(
        "current = \"default\"\n\n[contexts.default]\nurls = [{url:?}]\ntoken = {token:?}\nca_pem = \"\"\"\n{ca_pem}\"\"\"\n"
    );
    let mut file = std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("could not write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("could not write {}", path.display()))
}

async fn serve(config: Config) -> Result<()> {
    log::init(&config.log)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let foundation = Foundation::open(config).await?;
    if let Some(token) = &foundation.admin_token {
        writeln!(std::io::stdout(), "The token of the account admin, shown only now:\n{token}")?;
    }
    let app = App::start(foundation).await?;
    tracing::info!(address = %app.address(), version = env!("CARGO_PKG_VERSION"), "serving");
    notify("READY=1\nSTATUS=serving");
    let fenced = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = app.fenced() => true,
    };
    if fenced {
        // Others may act for this controller's resources from now on: nothing may be finished here, and
        // nobody be told how something ended. So nothing is taken down in order.
        tracing::error!("this controller was fenced and stops at once; it may be started again");
        std::process::exit(FENCED);
    }
    tracing::info!("stopping");
    notify("STOPPING=1\nSTATUS=draining");
    app.shutdown().await;
    Ok(())
}

/// Tells systemd, when it started this process.
fn notify(state: &str) {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        let pairs: Vec<_> = state.lines().filter_map(|line| line.split_once('=')).collect();
        if let Err(error) = systemd::daemon::notify(pairs.iter()) {
            tracing::warn!(%error, "systemd could not be told");
        }
    }
}
