//! `kring-bench`: prints the figures that Kring claims. `make bench` builds and runs it.

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use harness::bench;

/// Prints figures of Kring. Without a name, all of them.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// Request-replies a second on the bus.
    Bus,
    /// Balance and speed of the ring.
    Ring,
    /// GET of a VM over HTTPS.
    Api,
    /// VMs made on simulated hosts.
    Create {
        /// Numbers of VMs, one after the other.
        #[arg(default_values_t = [1, 100, 1000])]
        sizes: Vec<usize>,
    },
    /// Memory and processor time of controller and agent while nothing happens.
    Idle,
    /// A VM on a real host, beside the same work by hand.
    Start {
        /// How often each is done.
        #[arg(default_value_t = 9)]
        rounds: u32,
    },
    /// Time until others go on with what was a killed controller's.
    Takeover {
        /// How often one is killed.
        #[arg(default_value_t = 20)]
        kills: usize,
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

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match args.what {
        Some(What::Bus) => bench::bus::run(),
        Some(What::Ring) => bench::ring::run(),
        Some(What::Api) => runtime.block_on(bench::api::run()),
        Some(What::Create { sizes }) => runtime.block_on(bench::create::run(&sizes)),
        Some(What::Idle) => runtime.block_on(bench::idle::run()),
        Some(What::Start { rounds }) => runtime.block_on(bench::start::run(rounds)),
        Some(What::Takeover { kills }) => runtime.block_on(bench::takeover::run(kills)),
        Some(What::Load { config, paths, seconds }) => {
            let seen = runtime.block_on(bench::load::run(&config, paths, seconds))?;
            Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&seen)?)?)
        }
        None => {
            bench::ring::run()?;
            bench::bus::run()?;
            runtime.block_on(async {
                bench::idle::run().await?;
                bench::start::run(9).await?;
                bench::api::run().await?;
                bench::create::run(&[1, 100, 1000]).await?;
                bench::takeover::run(20).await
            })
        }
    }
}
