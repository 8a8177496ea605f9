//! `kring-chaos`: plays faults at random to a fleet of controllers under load, and checks that nothing was
//! lost, doubled or left behind. `make chaos` builds and runs it.

use std::io::Write;
use std::time::Duration;

use clap::Parser;
use harness::chaos;
use harness::fleet::{Fleet, Tally};

/// Faults at random, from a seed, while users work.
#[derive(Parser)]
struct Args {
    /// Seed of the first run; each run has the next one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many runs.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// How long faults are played in each run, in seconds.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Controllers.
    #[arg(long, default_value_t = 3)]
    controllers: usize,
    /// Simulated hosts.
    #[arg(long, default_value_t = 4)]
    hosts: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let args = Args::parse();
    let mut out = std::io::stdout();
    let fleet = Fleet::start(args.controllers, args.hosts).await?;
    let (mut sum, mut taken_over, mut failed, mut orphans) = (Tally::default(), Vec::new(), Vec::new(), 0);
    for seed in args.seed..args.seed + args.runs {
        let run = chaos::run(&fleet, seed, Duration::from_secs(args.seconds)).await;
        let run = run.inspect_err(|_| eprintln!("seed {seed} cannot be played\n{}", fleet.logs(80)))?;
        taken_over.extend(run.seen.taken_over.iter().copied());
        sum.add(&run.tally);
        orphans += run.orphans;
        writeln!(out, "seed {seed}: {run}")?;
        if !run.breaches.is_empty() {
            writeln!(out, "{}\n{}", run.faults.join("\n"), fleet.logs(80))?;
            writeln!(out, "seed {seed} FAILED: {}", run.breaches.join("\n"))?;
            failed.push(seed);
            // Others would find what this one has left.
            if run.orphans > 0 {
                break;
            }
        }
    }
    taken_over.sort_unstable();
    let at = |part: f64| taken_over.get(((taken_over.len() as f64 * part) as usize).min(taken_over.len().max(1) - 1));
    writeln!(out, "{} runs, {orphans} with orphans: {sum}", args.runs)?;
    if let (Some(median), Some(worst)) = (at(0.5), at(0.99)) {
        writeln!(out, "{} kills served by others: p50 {median:.2?}, p99 {worst:.2?}", taken_over.len())?;
    }
    fleet.stop().await?;
    anyhow::ensure!(failed.is_empty(), "seeds that failed: {failed:?}");
    Ok(())
}
