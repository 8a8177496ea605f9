//! `kring-controller`: the command line of the controller process.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{CommandFactory as _, Parser, Subcommand};
use controller::app::{self, App, Foundation};
use controller::config::{Config, DEFAULT_TOML};
use controller::{backup, log, privileges, systemd};
use shared::wire::host::Grade;
use tokio::signal::unix::{SignalKind, signal};

/// Very many small pieces of memory are taken on one thread and given back on another, for which the system's own
/// allocator is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How a process ends that was fenced.
const FENCED: i32 = 3;
/// How `check` ends when a controller cannot run.
const UNFIT: i32 = 1;

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
    /// Looks whether a controller can run here as it is configured, and says what to do; one may be running.
    Check,
    /// Makes another token of the admin account and prints it; the controller may be running.
    AdminToken {
        /// Where to write a configuration for the command line `kring`, in place of printing.
        #[arg(long, value_name = "FILE")]
        cli_config: Option<PathBuf>,
    },
    /// Copies all that the controller keeps into a new folder; the controller may be running.
    Backup {
        /// The folder, which must be empty or missing.
        folder: PathBuf,
    },
    /// Puts a backup into a data folder without a database; the controller must not run.
    Restore {
        /// The folder that `backup` made.
        folder: PathBuf,
    },
    /// Prints the default configuration, which is also its manual.
    Config,
    /// Writes the manual pages into a folder, for packages.
    #[command(hide = true)]
    Manual {
        /// The folder, which must exist.
        folder: PathBuf,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.command {
        Command::Config => return Ok(std::io::stdout().write_all(DEFAULT_TOML.as_bytes())?),
        Command::Manual { folder } => return manual(folder),
        _ => {}
    }
    let mut set = args.set;
    set.extend(args.data_dir.map(|dir| format!("data_dir={}", dir.display())));
    set.extend(args.listen.map(|listen| format!("api.listen={listen}")));
    let config = Config::load(args.config.as_deref(), &set)?;
    // What only root may do comes first; copies are made for root, from wherever to wherever.
    let cli_config = match &args.command {
        Command::Init { cli_config: Some(path) } | Command::AdminToken { cli_config: Some(path) } => {
            Some(CliConfig::open(path)?)
        }
        _ => None,
    };
    if !matches!(args.command, Command::Backup { .. } | Command::Restore { .. }) {
        privileges::become_owner_of(&config.data_dir)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match args.command {
            Command::Init { .. } => init(config, cli_config).await,
            Command::Serve => serve(config).await,
            Command::Check => check(&config).await,
            Command::AdminToken { .. } => admin_token(&config, cli_config).await,
            Command::Backup { folder } => {
                let size = backup::backup(&config, &std::path::absolute(&folder)?).await?;
                Ok(writeln!(std::io::stdout(), "{}: {size} bytes", folder.display())?)
            }
            Command::Restore { folder } => {
                backup::restore(&config, &std::path::absolute(&folder)?).await?;
                let dir = config.data_dir.display();
                Ok(writeln!(std::io::stdout(), "{dir} is as it was in the backup; start the controller")?)
            }
            Command::Config | Command::Manual { .. } => Ok(()),
        }
    })
}

async fn check(config: &Config) -> Result<()> {
    let findings = controller::check::run(config).await;
    let mut out = std::io::stdout();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    if findings.iter().any(|finding| finding.grade == Grade::Bad) {
        writeln!(out, "A controller cannot run here yet.")?;
        std::process::exit(UNFIT);
    }
    Ok(writeln!(out, "A controller can run here.")?)
}

fn manual(folder: &Path) -> Result<()> {
    let command = Args::command().disable_help_subcommand(true);
    Ok(clap_mangen::Man::new(command).section("8").manual("Kring").generate_to(folder).map(drop)?)
}

async fn init(config: Config, cli_config: Option<CliConfig>) -> Result<()> {
    let url = config.client_url();
    let foundation = Foundation::open(config).await?;
    let token = match (foundation.admin_token.clone(), &cli_config) {
        (Some(token), _) => token,
        (None, Some(_)) => foundation.new_admin_token().await?,
        (None, None) => {
            return Ok(writeln!(
                std::io::stdout(),
                "already initialised; `kring-controller admin-token` makes another token"
            )?);
        }
    };
    match cli_config {
        None => Ok(writeln!(std::io::stdout(), "The token of the account admin, shown only now:\n{token}")?),
        Some(file) => file.write(&url, foundation.ca_pem(), &token),
    }
}

async fn admin_token(config: &Config, cli_config: Option<CliConfig>) -> Result<()> {
    let secret = app::new_admin_token(config).await?;
    let Some(file) = cli_config else { return Ok(writeln!(std::io::stdout(), "{secret}")?) };
    let ca = config.pki_dir().join("ca.pem");
    let ca_pem = std::fs::read_to_string(&ca).with_context(|| format!("could not read {}", ca.display()))?;
    file.write(&config.client_url(), &ca_pem, &secret)
}

/// A configuration for `kring`, readable by its owner only; opened before it is known what it says.
struct CliConfig {
    path: PathBuf,
    file: std::fs::File,
}

impl CliConfig {
    fn open(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
        }
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("could not write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(mut self, url: &str, ca_pem: &str, token: &str) -> Result<()> {
        let text = format!(
            "current = \"default\"\n\n[contexts.default]\nurls = [{url:?}]\ntoken = {token:?}\nca_pem = \"\"\"\n{ca_pem}\"\"\"\n"
        );
        let path = self.path.display();
        let done = self.file.set_len(0).and_then(|()| self.file.write_all(text.as_bytes()));
        done.with_context(|| format!("could not write {path}"))?;
        Ok(writeln!(std::io::stdout(), "The command line `kring` finds its way with KRING_CONFIG={path}")?)
    }
}

async fn serve(config: Config) -> Result<()> {
    log::init(&config.log)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let foundation = Foundation::open(config).await?;
    match &foundation.admin_token {
        // Logs are read by more people than an admin's token is for.
        Some(_) if systemd::prints_to_journal() => {
            tracing::info!("the account admin was made: `kring-controller admin-token` makes a token of it");
        }
        Some(token) => writeln!(std::io::stdout(), "The token of the account admin, shown only now:\n{token}")?,
        None => {}
    }
    let app = App::start(foundation).await?;
    tracing::info!(address = %app.address(), version = env!("CARGO_PKG_VERSION"), "serving");
    systemd::ready(&format!("serves at {}", app.address()));
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
    systemd::stopping("drains");
    app.shutdown().await;
    Ok(())
}
