//! The wall clock, as the rest of the program sees it: the database's, which all controllers share.
//!
//! It begins with this machine's clock, is set right by what the database tells ([`Clock::follow`], with
//! each heartbeat), and passes with the monotonic clock in between. So a machine whose clock is an hour
//! off, or is set while the controller runs, writes the same times into rows as every other controller,
//! and reads their deadlines as they were meant. (An embedded database has this machine's clock.)
//!
//! Everything that needs the time of day is handed this clock, so a test can move it. What measures
//! durations uses tokio's clock, which a test can pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Instant;

use shared::time::Timestamp;

/// The database's milliseconds and this clock's begin at different moments.
const ROUNDING_MS: i64 = 1;

/// The wall clock and how far a test has moved it. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Clock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    born: Instant,
    /// The time at `born`, in milliseconds since the epoch.
    born_at_ms: AtomicI64,
    /// How far a test has moved it; what the database tells does not undo that.
    moved_ms: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::beginning_at(Timestamp::now())
    }
}

impl Clock {
    /// A clock that takes this moment for `now`, until it hears otherwise.
    #[must_use]
    pub fn beginning_at(now: Timestamp) -> Self {
        let inner = Inner { born: Instant::now(), born_at_ms: AtomicI64::new(now.ms()), moved_ms: AtomicI64::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp(self.told_by(Instant::now()) + self.inner.moved_ms.load(Relaxed))
    }

    /// Takes over the time that the database told at some moment between `asked` and now. Answers by how
    /// many milliseconds it was set; 0 when it was right, as far as such an answer can say.
    pub fn follow(&self, asked: Instant, told: Timestamp) -> i64 {
        let (earliest, latest) = (self.told_by(asked) - ROUNDING_MS, self.told_by(Instant::now()) + ROUNDING_MS);
        // No further than is certain, so that small differences do not make it go to and fro.
        let by = told.ms() - told.ms().clamp(earliest, latest);
        if by != 0 {
            self.inner.born_at_ms.fetch_add(by, Relaxed);
        }
        by
    }

    /// Moves the clock by `ms`, forward or back, whatever the database tells.
    pub fn step(&self, ms: i64) {
        self.inner.moved_ms.fetch_add(ms, Relaxed);
    }

    fn told_by(&self, moment: Instant) -> i64 {
        let since = moment.saturating_duration_since(self.inner.born).as_millis();
        self.inner.born_at_ms.load(Relaxed) + i64::try_from(since).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_clock_that_is_off_is_set_by_the_database_and_one_that_is_right_is_left_alone() {
        for off in [-HOUR, HOUR] {
            let clock = Clock::beginning_at(Timestamp::now().plus_ms(off));
            let asked = Instant::now();
            let by = clock.follow(asked, Timestamp::now());
            assert!((by + off).abs() < HOUR / 2, "{by} for {off}");
            // What is between the question and now is right, and so is what is less than a rounding away.
            let (earlier, before) = (clock.now(), clock.now());
            assert_eq!(clock.follow(asked, earlier), 0);
            assert_eq!(clock.follow(Instant::now(), clock.now()), 0);
            assert!(clock.now() >= before);
        }
    }

    #[test]
    fn what_a_test_has_moved_stays_moved() {
        let clock = Clock::default();
        let real = clock.now();
        clock.step(HOUR);
        assert_eq!(clock.follow(Instant::now(), real), 0);
        assert!(clock.now().ms() >= real.ms() + HOUR);
    }
}
