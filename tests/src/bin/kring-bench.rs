//! `kring-bench`: prints the figures that Kring claims. `make bench` builds and runs it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use harness::{bench, cmd};

/// What the controller and the simulated hosts have when they are processes of their own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time between two pings of a host, where nothing else is asked for.
const MINUTE: Duration = Duration::from_secs(60);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// Prints figures of Kring.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Request-replies a second on the bus.
    Bus {
        /// How many, over the broker; twenty-five times as many in the process.
        #[arg(default_value_t = 20_000)]
        calls: u64,
    },
    /// Balance and speed of the ring.
    Ring,
    /// GET of a VM over HTTPS, and very many calls in flight.
    Api {
        /// Numbers of calls in flight, one after the other.
        #[arg(default_values_t = [100, 1000, 10_000])]
        sizes: Vec<usize>,
    },
    /// Reads of very many VMs, and a restart of the controller that has them.
    Query {
        /// Numbers of VMs, one after the other.
        #[arg(default_values_t = [10_000, 100_000, 1_000_000])]
        sizes: Vec<usize>,
        /// Hosts that they are on.
        #[arg(long, default_value_t = 1000)]
        hosts: usize,
    },
    /// A restart of the controller that has very many VMs.
    Restart {
        /// Numbers of VMs, one after the other.
        #[arg(default_values_t = [10_000, 100_000, 1_000_000])]
        sizes: Vec<usize>,
        /// Hosts that they are on.
        #[arg(long, default_value_t = 1000)]
        hosts: usize,
    },
    /// VMs made on simulated hosts.
    Create {
        /// Numbers of VMs, one after the other.
        #[arg(default_values_t = [1, 10, 100, 1000, 10_000])]
        sizes: Vec<usize>,
        /// Hosts that they are put on.
        #[arg(long, default_value_t = 100)]
        hosts: usize,
    },
    /// Hosts on which nothing happens, dead ones among them, and a restart of their controller.
    Hosts {
        /// Numbers of hosts, one after the other.
        #[arg(default_values_t = [1000, 10_000, 100_000])]
        sizes: Vec<usize>,
        /// Seconds between two pings of a host.
        #[arg(long, default_value_t = 60)]
        interval: u64,
    },
    /// Decisions on which host a VM is put.
    Placement {
        /// Numbers of hosts, one after the other.
        #[arg(default_values_t = [1000, 10_000, 100_000])]
        sizes: Vec<usize>,
    },
    /// Memory and processor time of controller and agent while nothing happens.
    Idle,
    /// A VM on a real host, beside the same work by hand.
    Start {
        /// How often each is done.
        #[arg(default_value_t = 9)]
        rounds: usize,
        /// Numbers of VMs that are made at the same moment, one after the other.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
        sizes: Vec<usize>,
    },
    /// VMs that come and go for a long time, while one in a hundred commands goes wrong.
    Soak {
        /// VMs a second.
        #[arg(long, default_value_t = 200)]
        rate: u32,
        /// How long, in seconds.
        #[arg(long, default_value_t = 1800)]
        seconds: u64,
    },
    /// Time until others go on with what was a killed controller's.
    Takeover {
        /// How often one is killed.
        #[arg(default_value_t = 20)]
        kills: usize,
    },
    /// Queues of the message broker for two controllers.
    Queues {
        /// Numbers of hosts, one after the other.
        #[arg(default_values_t = [100, 1000, 10_000])]
        sizes: Vec<usize>,
    },
    /// The bare program beside `create`.
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        host: SocketAddr,
        #[arg(long)]
        commands: u64,
        #[arg(long)]
        writes: u64,
        #[arg(long)]
        together: u64,
        #[arg(long)]
        database: Option<String>,
    },
    /// The bare program beside `hosts`.
    #[command(hide = true)]
    FloorPings {
        #[arg(long)]
        folder: PathBuf,
    },
    /// The load generator that `api` starts.
    #[command(hide = true)]
    Load {
        #[arg(long)]
        config: PathBuf,
        #[arg(long, value_delimiter = ',')]
        paths: Vec<String>,
        #[arg(long)]
        seconds: u64,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cmd::until_told_to_end(Box::pin(run(Args::parse().what))).await
}

async fn run(what: What) -> anyhow::Result<()> {
    match what {
        What::Bus { calls } => bench::bus::run(calls).await,
        What::Ring => tokio::task::spawn_blocking(bench::ring::run).await?,
        What::Api { sizes } => bench::api::run(&sizes).await,
        What::Create { sizes, hosts } => bench::create::run(&sizes, hosts).await,
        What::Hosts { sizes, interval } => bench::hosts::run(&sizes, Duration::from_secs(interval)).await,
        What::Query { sizes, hosts } => bench::query::run(&sizes, hosts, MINUTE).await,
        What::Restart { sizes, hosts } => bench::restart::run(&sizes, hosts, MINUTE).await,
        What::Placement { sizes } => bench::placement::run(&sizes).await,
        What::Idle => bench::idle::run(IDLE).await,
        What::Start { rounds, sizes } => bench::start::run(rounds, &sizes).await,
        What::Soak { rate, seconds } => bench::soak::run(rate, Duration::from_secs(seconds)).await,
        What::Takeover { kills } => bench::takeover::run(kills).await,
        What::Queues { sizes } => bench::queues::run(&sizes).await,
        What::Floor { folder, host, commands, writes, together, database } => {
            let work = bench::floor::Work { requests: 0, commands, writes, together };
            bench::floor::serve(&folder, host, work, database.as_deref()).await
        }
        What::FloorPings { folder } => {
            let each = bench::floor::pings::run(&folder).await?;
            Ok(writeln!(std::io::stdout(), "{each}")?)
        }
        What::Load { config, paths, seconds } => {
            let seen = bench::load::run(&config, paths, seconds).await?;
            Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&seen)?)?)
        }
    }
}
