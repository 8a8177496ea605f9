//! When a host was pinged, to see whether anybody was forgotten or kept waiting.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The pings of one host. Times count from the start of the simulator.
#[derive(Debug, Default)]
pub struct Pings {
    count: AtomicU64,
    last_ms: AtomicU64,
    longest_ms: AtomicU64,
}

impl Pings {
    /// One has come.
    pub(super) fn note(&self, at: Duration) {
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let before = self.last_ms.swap(at, Relaxed);
        if self.count.fetch_add(1, Relaxed) > 0 {
            self.longest_ms.fetch_max(at.saturating_sub(before), Relaxed);
        }
    }

    /// How many have come.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// When the last one came.
    #[must_use]
    pub fn last(&self) -> Duration {
        Duration::from_millis(self.last_ms.load(Relaxed))
    }

    /// The longest time between two of them since the last time this was asked.
    pub fn take_longest(&self) -> Duration {
        Duration::from_millis(self.longest_ms.swap(0, Relaxed))
    }
}
