//! `kring-sim`: simulated hosts for a real controller.
//!
//! Gets a one-time token for each host from the controller's API, has the hosts join, and serves
//! until it is interrupted. See `sim::control` for what can be done on its control port.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use sim::client::Client;
use sim::{Options, Sim, control, tls};
use tokio::net::TcpListener;

/// What thousands of hosts take and give back in bursts leaves the system's own allocator with memory that it cannot
/// give back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONTROL: &str = "\
Example:
  kring-sim --config ~/.config/kring/config.toml --hosts 1000 --control 9000

What happens to the hosts is said at the control port, by plain HTTP:

  GET /hosts, GET /hosts/ID
      the hosts; everything on one, by its id or its name

  POST /hosts/ID/VERB
      restart, reboot, down, up, freeze, thaw, wipe

  PUT /hosts/ID
      any of {\"libvirt_error\": \"gone\", \"available\": 0,
      \"clock_ahead_ms\": 3600000, \"deaf_guests\": true,
      \"silent\": true}

  POST /hosts/ID/vms/VM/VERB
      running, paused, stopped, crashed, undefine

  POST /faults
      {\"path\": \"vm/ensure\", \"what\": {\"kind\": \"delay\", \"ms\": 5000}};
      with \"host\", \"hosts\" (a part of all, 0 to 1), \"probability\",
      \"times\" and \"skip\" at will

  GET /faults, DELETE /faults, DELETE /faults/N

With * as ID, the second and the third mean every host. Kinds of faults:

  delay and callback_late, with \"ms\"
  fail, fail_after, fail_halfway, with the \"code\" of an error
  restart_halfway, restart_after, drop_before, drop_after, silence,
  held, unanswered, hang, defer, callback_lost, callback_twice,
  callback_reordered";

/// Simulated hosts that speak the agent's wire for real.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Example:\n  kring-sim --config ~/.config/kring/config.toml --hosts 1000",
    after_long_help = CONTROL
)]
struct Args {
    /// Configuration of the kring command: the controller and an admin's token.
    #[arg(long, env = "KRING_CONFIG", required = true)]
    config: Option<PathBuf>,
    /// How many hosts.
    #[arg(long, default_value_t = 10)]
    hosts: usize,
    /// How many join at the same time.
    #[arg(long, default_value_t = 16)]
    parallel: usize,
    /// Hosts are named after it, with a number.
    #[arg(long, default_value = "sim")]
    prefix: String,
    /// The same seed gives the same faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Part of the commands, 0 to 1, that are answered by callback.
    #[arg(long, default_value_t = 0.0)]
    deferred: f64,
    /// Processors of a host.
    #[arg(long, default_value_t = 16)]
    cpus: u32,
    /// Memory of a host.
    #[arg(long, default_value = "64GiB")]
    memory: shared::units::Bytes,
    /// Port of the control interface on 127.0.0.1; any when 0.
    #[arg(long, default_value_t = 0)]
    control: u16,
    #[command(subcommand)]
    other: Option<Other>,
}

/// What it does instead of simulating.
#[derive(Subcommand)]
enum Other {
    /// Write the manual page into a folder, for packages
    #[command(hide = true)]
    Manual {
        /// The folder, which must exist
        folder: PathBuf,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    tls::install_provider();
    let args = Args::parse();
    if let Some(Other::Manual { folder }) = args.other {
        let command = Args::command().disable_help_subcommand(true);
        clap_mangen::Man::new(command).section("1").manual("Kring").generate_to(folder)?;
        return Ok(());
    }
    let api = Client::from_cli_config(&args.config.context("--config is required")?)?;
    let sim = Arc::new(Sim::new(Options {
        seed: args.seed,
        prefix: args.prefix,
        deferred: args.deferred,
        cpus: args.cpus,
        memory: args.memory,
        ..Options::new(api.url())
    }));
    // Whoever finds its port taken hears of it before any host has joined.
    let listener = TcpListener::bind(("127.0.0.1", args.control)).await.context("the control port")?;
    let joins = stream::iter(0..args.hosts).map(|_| async {
        let token = api.join_token().await?;
        sim.join(&token.token).await
    });
    let joined = joins.buffer_unordered(args.parallel.max(1)).try_collect::<Vec<_>>().await?;
    println!("{} hosts joined; control port: http://{}", joined.len(), listener.local_addr()?);
    control::listen(&sim, listener);
    tokio::signal::ctrl_c().await?;
    sim.shutdown().await;
    Ok(())
}
