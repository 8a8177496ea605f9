//! `kring-simulate`: plays controllers under fault with simulated time, one run for each seed. `make simulate`
//! builds and runs it.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use harness::simulate::{Layouts, Outcome, run};

/// Controllers under fault, with simulated time and network.
#[derive(Parser)]
struct Args {
    /// Seed of the first run; each run has the next one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many runs. With one, what happens in it is told.
    #[arg(long, default_value_t = 2000)]
    runs: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (begin, next, end) = (Instant::now(), AtomicU64::new(args.seed), args.seed + args.runs);
    let (sum, failed) = (Mutex::new(Outcome::default()), Mutex::new(Vec::new()));
    let worker = || {
        let mut layouts = Layouts::default();
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= end {
                return;
            }
            let outcome = run(seed, None, &mut layouts, args.runs == 1);
            sum.lock().unwrap_or_else(PoisonError::into_inner).add(&outcome);
            if !outcome.breaches.is_empty() || args.runs == 1 {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push((seed, outcome));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
    let mut out = std::io::stdout();
    let (sum, mut shown) = (sum.into_inner().unwrap_or_default(), failed.into_inner().unwrap_or_default());
    shown.sort_by_key(|(seed, _)| *seed);
    for (_, outcome) in &shown {
        outcome.story.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    let failed: Vec<_> = shown.iter().filter(|(_, outcome)| !outcome.breaches.is_empty()).collect();
    for (seed, outcome) in failed.iter().take(10) {
        writeln!(out, "seed {seed} FAILED (make simulate SEED={seed} RUNS=1): {}", outcome.breaches.join("\n  "))?;
    }
    writeln!(out, "{} runs in {:.1} s: {sum}", args.runs, begin.elapsed().as_secs_f64())?;
    let seeds: Vec<_> = failed.iter().map(|(seed, _)| seed).collect();
    anyhow::ensure!(failed.is_empty(), "{} seeds failed: {seeds:?}", seeds.len());
    Ok(())
}
