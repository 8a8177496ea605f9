//! What a service has done and is doing; counted by the bus, read by `/v1/services` and `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one service.
#[derive(Debug, Default)]
pub struct ServiceStats {
    queued: AtomicU64,
    in_flight: AtomicU64,
    handled: AtomicU64,
    failed: AtomicU64,
    /// Most messages that may wait or be handled, when not the usual number; 0: the usual one.
    most: AtomicU64,
}

/// A message that waits or is being handled, and counts as such until it is dropped: however it ends.
pub(super) struct Load {
    stats: Arc<ServiceStats>,
    begun: bool,
}

impl Load {
    /// From now on it is being handled.
    pub(super) fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.stats.queued.fetch_sub(1, Relaxed);
            self.stats.in_flight.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let counter = if self.begun { &self.stats.in_flight } else { &self.stats.queued };
        counter.fetch_sub(1, Relaxed);
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Messages that wait.
    pub queued: u64,
    /// Messages that are being handled.
    pub in_flight: u64,
    /// Messages that were answered.
    pub handled: u64,
    /// Of these, with an error.
    pub failed: u64,
}

impl ServiceStats {
    /// One more message waits, until what is answered begins or is dropped.
    pub(super) fn queued(self: &Arc<Self>) -> Load {
        self.queued.fetch_add(1, Relaxed);
        Load { stats: Arc::clone(self), begun: false }
    }

    pub(super) fn handled(&self, ok: bool) {
        self.handled.fetch_add(1, Relaxed);
        if !ok {
            self.failed.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn limit(&self, most: u64) {
        self.most.store(most, Relaxed);
    }

    /// Whether there is as much to do as may be.
    pub(super) fn is_full(&self, usual: u64) -> bool {
        let most = self.most.load(Relaxed);
        self.load() >= if most == 0 { usual } else { most }
    }

    /// Messages that wait or are being handled.
    #[must_use]
    pub fn load(&self) -> u64 {
        self.queued.load(Relaxed) + self.in_flight.load(Relaxed)
    }

    /// The counters now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            queued: self.queued.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            handled: self.handled.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }
}
