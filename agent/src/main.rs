//! The command line of the agent.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::config::{Config, DEFAULT_TOML};
use agent::identity::Store;
use agent::identity::join::{JoinOptions, join};
use agent::libvirt::Hypervisor;
use agent::libvirt::real::Libvirt;
use agent::network::Networks;
use agent::{check, facts, identity, log, purge, service, systemd};
use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use shared::name::Name;
use shared::wire::host::Grade;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long `join`, `check` and `purge` wait for libvirt.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent of Kring: one per KVM host.
#[derive(Debug, Parser)]
#[command(name = "kring-agent", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  kring-agent check
  kring-agent join --controller https://10.0.0.1:8443 --token TOKEN
  kring-agent run
  kring-agent purge --yes";

#[derive(Debug, Args)]
struct Options {
    /// Configuration file [default: /etc/kring/agent.toml when it exists]
    #[arg(long, global = true, env = "KRING_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Instead of [agent] data_dir
    #[arg(long, global = true, env = "KRING_AGENT_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Instead of [agent] run_dir
    #[arg(long, global = true, env = "KRING_AGENT_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Instead of [libvirt] uri
    #[arg(long, global = true, env = "KRING_AGENT_LIBVIRT_URI", value_name = "URI")]
    libvirt_uri: Option<String>,
    /// Instead of [log] filter, such as debug
    #[arg(long, global = true, env = "KRING_LOG", value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the controllers until a signal to stop
    Run {
        /// Instead of [agent] listen
        #[arg(long, env = "KRING_AGENT_LISTEN", value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
    },
    /// Join a controller with a one-time token (kring host join-token)
    Join(JoinArgs),
    /// Tell whether this host is fit, and what to do where it is not
    Check,
    /// Forget the controllers and this host's certificate; guests, networks and volumes stay
    Leave,
    /// Remove everything of Kring from this host: guests, networks, volumes, images, identity
    Purge {
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Go on when libvirt does not answer, and leave its domains
        #[arg(long)]
        without_libvirt: bool,
    },
    /// Print the configuration file with every key and its default
    Config,
    /// Write the manual pages into a folder, for packages
    #[command(hide = true)]
    Manual {
        /// The folder, which must exist
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
struct JoinArgs {
    /// Address of a controller; several with commas, or given more than once
    #[arg(long, required = true, value_name = "URL", value_delimiter = ',')]
    controller: Vec<String>,
    /// The one-time token
    // It may begin with a hyphen.
    #[arg(long, env = "KRING_JOIN_TOKEN", hide_env_values = true, allow_hyphen_values = true)]
    token: String,
    /// Name of this host [default: its host name]
    #[arg(long)]
    name: Option<Name>,
    /// Address that controllers reach this host at [default: where the request comes from]
    #[arg(long)]
    address: Option<IpAddr>,
    /// Port that the agent listens on [default: that of [agent] listen]
    #[arg(long)]
    port: Option<u16>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kring-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let config = configure(&cli.options)?;
    log::start(&config.log)?;
    identity::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_keep_alive(Duration::from_secs(10))
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    let code = runtime.block_on(Box::pin(execute(cli.command, config)));
    // What hangs in a call to a dead disk or libvirt must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    code
}

fn configure(options: &Options) -> anyhow::Result<Config> {
    let mut config = Config::load(options.config.as_deref())?;
    for (option, given, target) in [
        ("--data-dir", &options.data_dir, &mut config.agent.data_dir),
        ("--run-dir", &options.run_dir, &mut config.agent.run_dir),
    ] {
        if let Some(path) = given {
            anyhow::ensure!(agent::config::is_plain_absolute(path), "{option} must be an absolute path without `..`");
            target.clone_from(path);
        }
    }
    if let Some(uri) = &options.libvirt_uri {
        config.libvirt.uri.clone_from(uri);
    }
    if let Some(filter) = &options.log {
        config.log.filter.clone_from(filter);
    }
    Ok(config)
}

async fn execute(command: Command, mut config: Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { listen } => {
            config.agent.listen = listen.unwrap_or(config.agent.listen);
            run(config).await
        }
        Command::Join(args) => join_controller(&config, args).await,
        Command::Check => check_host(&config).await,
        Command::Leave => {
            let _claim = service::claim(&config.agent.data_dir)?;
            Store::new(&config.agent.data_dir).remove()?;
            println!("This host has left its controllers.");
            Ok(ExitCode::SUCCESS)
        }
        Command::Purge { yes, without_libvirt } => purge_host(&config, yes, without_libvirt).await,
        Command::Config => {
            print!("{DEFAULT_TOML}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Manual { folder } => {
            let command = Cli::command().disable_help_subcommand(true);
            clap_mangen::Man::new(command).section("8").manual("Kring").generate_to(folder)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hypervisor = Arc::new(Libvirt::start(&config.libvirt).context("libvirt's library could not be started")?);
    let running = Box::pin(service::start(config, hypervisor)).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn join_controller(config: &Config, args: JoinArgs) -> anyhow::Result<ExitCode> {
    let _claim = service::claim(&config.agent.data_dir)?;
    let hypervisor = Libvirt::start(&config.libvirt).context("libvirt's library could not be started")?;
    if let Err(error) = hypervisor.wait_ready(PATIENCE).await {
        eprintln!("kring-agent: warning: {error}; `kring-agent check` tells what is missing");
    }
    let facts = facts::gather(&hypervisor, config.libvirt.virt_mode).await;
    let name = match args.name {
        Some(name) => name,
        None => facts.hostname.parse().context("the host name is no name for a host: give --name")?,
    };
    let options = JoinOptions {
        controllers: args.controller,
        token: args.token,
        name: name.clone(),
        address: args.address,
        port: args.port.unwrap_or(config.agent.listen.port()),
        timeout: config.controller.timeout(),
    };
    let joined = Box::pin(join(&Store::new(&config.agent.data_dir), options, facts)).await;
    let id = joined.map_err(|error| {
        let text = log::chain(&error);
        match error {
            identity::Error::Unreachable(_) => anyhow::anyhow!("{text}; {}", check::advice(&text, false)),
            _ => anyhow::anyhow!(text),
        }
    })?;
    let start = if systemd::has_unit() { "systemctl start kring-agent" } else { "kring-agent run" };
    println!("Joined as {name} ({id}). Start the agent: {start}");
    Ok(ExitCode::SUCCESS)
}

async fn check_host(config: &Config) -> anyhow::Result<ExitCode> {
    let hypervisor = Libvirt::start(&config.libvirt).context("libvirt's library could not be started")?;
    // Whether it answers is one of the findings.
    let _ = hypervisor.wait_ready(PATIENCE).await;
    let mut findings = check::run(config, &hypervisor).await;
    findings.extend(Box::pin(check::from_outside(config)).await);
    for finding in &findings {
        println!("{finding}");
    }
    let fit = findings.iter().all(|f| f.grade != Grade::Bad);
    println!("{}", if fit { "This host is fit for Kring." } else { "This host is not fit yet." });
    Ok(if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn purge_host(config: &Config, yes: bool, without_libvirt: bool) -> anyhow::Result<ExitCode> {
    if !yes {
        anyhow::bail!("this removes every guest, volume, network and image of Kring on this host, for good: add --yes");
    }
    let claim = service::claim(&config.agent.data_dir)?;
    let hypervisor = Libvirt::start(&config.libvirt).context("libvirt's library could not be started")?;
    let ready = hypervisor.wait_ready(PATIENCE).await;
    let hypervisor: Option<&dyn Hypervisor> = match ready {
        Ok(()) => Some(&hypervisor),
        Err(error) if without_libvirt => {
            eprintln!("kring-agent: warning: {error}; domains are left");
            None
        }
        Err(error) => return Err(error).context("start libvirt first, or add --without-libvirt"),
    };
    let cancel = CancellationToken::new();
    let networks = Networks::new(config, TaskTracker::new(), cancel.clone());
    let removed = Box::pin(purge::run(config, hypervisor, &networks, &cancel)).await?;
    drop(claim);
    println!(
        "Removed {} guests, {} networks, {} volumes, the image cache and the identity.",
        removed.domains, removed.networks, removed.volumes
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_takes_options_anywhere() {
        Cli::command().debug_assert();
        let line = "kring-agent join --config /c.toml --controller https://a:1 --controller https://b:1 --token t";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli.options.config, Some(PathBuf::from("/c.toml")));
        assert!(matches!(cli.command, Command::Join(args) if args.controller.len() == 2));
        assert!(Cli::try_parse_from(["kring-agent", "join", "--token", "t"]).is_err(), "a controller is needed");
        let token = ["kring-agent", "join", "--controller", "https://a:1", "--token", "-iA-0"];
        assert!(matches!(Cli::try_parse_from(token).unwrap().command, Command::Join(args) if args.token == "-iA-0"));
    }

    #[test]
    fn a_relative_folder_is_refused() {
        let cli = Cli::try_parse_from(["kring-agent", "--data-dir", "x/y", "check"]).unwrap();
        let error = configure(&cli.options).unwrap_err().to_string();
        assert!(error.contains("--data-dir"), "{error}");
    }
}
