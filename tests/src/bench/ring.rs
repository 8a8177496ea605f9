//! `ring`: how fast and how even the ring is.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Instant;

use controller::ring::HashRing;
use shared::id::ControllerId;
use uuid::Uuid;

use super::Bench;

const IDS: usize = 100_000;
const LOOKUPS: usize = 2_000_000;

/// Measures.
///
/// # Errors
/// When the figures cannot be written.
pub fn run() -> anyhow::Result<()> {
    let mut bench = Bench::begin("ring")?.on(super::NONE);
    let ids: Vec<Uuid> = (0..IDS).map(|_| Uuid::now_v7()).collect();
    let (mut worst, mut most_moved) = (0.0_f64, 0.0_f64);
    for n in 2..=16_usize {
        let members: Vec<ControllerId> = (0..n).map(|_| ControllerId::new()).collect();
        let (ring, smaller) = (HashRing::new(&members), HashRing::new(&members[1..]));
        let mut load: HashMap<_, usize> = HashMap::new();
        let mut changed = 0_usize;
        for id in &ids {
            *load.entry(ring.owner(*id)).or_default() += 1;
            changed += usize::from(ring.owner(*id) != smaller.owner(*id));
        }
        let mean = IDS as f64 / n as f64;
        let largest = load.values().copied().max().unwrap_or(0) as f64 / mean;
        let moved = changed as f64 / mean;
        (worst, most_moved) = (worst.max(largest), most_moved.max(moved));
        if n.is_power_of_two() {
            let of = (n, "members");
            bench.point(of, "largest share / mean", largest, "", "");
            bench.point(of, "ids moved by a join or leave / (K / n)", moved, "", "");
            bench.point(of, "a look-up", lookup(&ring, &ids), "ns", "at most 100");
        }
    }
    bench.figure("largest share of 2 to 16 members / mean", worst, "", "at most 1.10");
    bench.figure("most ids moved by a join or leave / (K / n)", most_moved, "", "at most 1.2");
    bench.end()
}

/// Nanoseconds.
fn lookup(ring: &HashRing, ids: &[Uuid]) -> f64 {
    let begin = Instant::now();
    for n in 0..LOOKUPS {
        black_box(ring.owner(black_box(ids[n % IDS])));
    }
    begin.elapsed().as_nanos() as f64 / LOOKUPS as f64
}
