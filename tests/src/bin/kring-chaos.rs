//! `kring-chaos`: plays faults at random to a fleet of controllers under load, and checks that nothing was
//! lost, doubled or left behind. `make chaos` builds and runs it.

use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use futures_util::future::try_join_all;
use harness::chaos::{self, Outcome, steps};
use harness::cmd;
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
    /// Fleets that are played to at the same time, each with a broker and a database of its own.
    #[arg(long, default_value_t = 1)]
    fleets: usize,
    /// Instead, each fault at each moment of each job, once.
    #[arg(long)]
    steps: bool,
    /// Of these, those whose name contains this, such as `Freeze` or `Done of Stop`.
    #[arg(long, default_value = "", requires = "steps")]
    only: String,
}

/// What all runs came to.
#[derive(Default)]
struct Sum {
    runs: u64,
    tally: Tally,
    taken_over: Vec<Duration>,
    failed: Vec<u64>,
    orphans: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cmd::until_told_to_end(run()).await
}

async fn run() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let args = Args::parse();
    if args.steps {
        return all_steps(&args).await;
    }
    let (next, sum) = (AtomicU64::new(args.seed), Mutex::new(Sum::default()));
    let played = try_join_all((0..args.fleets.max(1)).map(|_| play(&args, &next, &sum))).await;
    let Sum { runs, tally, mut taken_over, failed, orphans } = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    taken_over.sort_unstable();
    let at = |part: f64| taken_over.get(((taken_over.len() as f64 * part) as usize).min(taken_over.len().max(1) - 1));
    let mut out = std::io::stdout();
    writeln!(out, "{runs} runs, {orphans} with orphans: {tally}")?;
    if let (Some(median), Some(worst)) = (at(0.5), at(0.99)) {
        writeln!(out, "{} kills served by others: p50 {median:.2?}, p99 {worst:.2?}", taken_over.len())?;
    }
    played?;
    anyhow::ensure!(failed.is_empty(), "seeds that failed: {failed:?}");
    anyhow::ensure!(runs == args.runs, "{} of {} runs were not played", args.runs - runs, args.runs);
    Ok(())
}

/// Plays every case, each fleet the next one; the first that fails ends it.
async fn all_steps(args: &Args) -> anyhow::Result<()> {
    let cases: Vec<_> = steps::all().into_iter().filter(|case| case.to_string().contains(&args.only)).collect();
    anyhow::ensure!(!cases.is_empty(), "no case is named so: --only {}", args.only);
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    try_join_all((0..args.fleets.max(1)).map(async |_| {
        let fleet = Fleet::start(args.controllers, args.hosts).await?;
        loop {
            let n = next.fetch_add(1, Relaxed);
            let Some(case) = cases.get(n) else { break };
            let played = steps::play(&fleet, n, *case).await.with_context(|| case.to_string());
            let tally = played.inspect_err(|_| eprintln!("{}", fleet.logs(80)))?;
            writeln!(std::io::stdout(), "{case}: {tally}")?;
            sum.lock().unwrap_or_else(PoisonError::into_inner).add(&tally);
        }
        fleet.stop().await
    }))
    .await?;
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(writeln!(std::io::stdout(), "{} cases: {sum}", cases.len())?)
}

/// Plays to one fleet, one seed after the other, as long as there are any.
async fn play(args: &Args, next: &AtomicU64, sum: &Mutex<Sum>) -> anyhow::Result<()> {
    let fleet = Fleet::start(args.controllers, args.hosts).await?;
    loop {
        let seed = next.fetch_add(1, Relaxed);
        if seed >= args.seed + args.runs {
            break;
        }
        let run = chaos::run(&fleet, seed, Duration::from_secs(args.seconds)).await;
        let run = run.inspect_err(|_| eprintln!("seed {seed} cannot be played\n{}", fleet.logs(80)))?;
        report(seed, &run, &fleet)?;
        let left = run.orphans > 0;
        sum.lock().unwrap_or_else(PoisonError::into_inner).add(seed, run);
        // Others would find what this one has left.
        if left {
            break;
        }
    }
    fleet.stop().await
}

fn report(seed: u64, run: &Outcome, fleet: &Fleet) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "seed {seed}: {run}")?;
    if !run.breaches.is_empty() {
        writeln!(out, "{}\n{}", run.faults.join("\n"), fleet.logs(80))?;
        writeln!(out, "seed {seed} FAILED: {}", run.breaches.join("\n"))?;
    }
    Ok(())
}

impl Sum {
    fn add(&mut self, seed: u64, run: Outcome) {
        self.runs += 1;
        self.tally.add(&run.tally);
        self.taken_over.extend(run.seen.taken_over);
        self.orphans += run.orphans;
        if !run.breaches.is_empty() {
            self.failed.push(seed);
        }
    }
}
