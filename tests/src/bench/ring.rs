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
    let mut bench = Bench::begin("ring")?;
    let ids: Vec<Uuid> = (0..IDS).map(|_| Uuid::now_v7()).collect();
    let (mut worst, mut moved) = (0.0_f64, 0.0_f64);
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
        worst = worst.max(load.values().copied().max().unwrap_or(0) as f64 / mean);
        moved = moved.max(changed as f64 / mean);
    }
    bench.figure("largest share of 2 to 16 members / mean", worst, "", "at most 1.10");
    bench.figure("ids moved by a join or leave / (K / n)", moved, "", "at most 1.2");
    let members: Vec<ControllerId> = (0..16).map(|_| ControllerId::new()).collect();
    let ring = HashRing::new(&members);
    let begin = Instant::now();
    for n in 0..LOOKUPS {
        black_box(ring.owner(black_box(ids[n % IDS])));
    }
    bench.figure("a look-up among 16 members", begin.elapsed().as_nanos() as f64 / LOOKUPS as f64, "ns", "at most 100");
    bench.end()
}
