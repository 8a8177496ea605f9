//! The wall clock, as the rest of the program sees it.
//!
//! Everything that needs the time of day is handed this clock, so a test can move it. What measures
//! durations uses tokio's clock, which a test can pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use shared::time::Timestamp;

/// The wall clock and how far a test has moved it. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
}

impl Clock {
    /// This moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::now().plus_ms(self.offset_ms.load(Relaxed))
    }

    /// Moves the clock by `ms`, forward or back.
    pub fn step(&self, ms: i64) {
        self.offset_ms.fetch_add(ms, Relaxed);
    }
}
