//! Which hosts were written to: their reservations, states or what they have.
//!
//! Whoever keeps a picture of the hosts in memory reads these again. A host is named after the commit
//! that changed it, so what is read then has the change in it.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::id::HostId;
use tokio::sync::Notify;

/// Hosts that were written to since somebody took them. Each is kept once, so there are never more than
/// hosts.
#[derive(Debug, Default)]
pub struct TouchedHosts {
    ids: Mutex<HashSet<HostId>>,
    woken: Notify,
}

impl TouchedHosts {
    fn ids(&self) -> MutexGuard<'_, HashSet<HostId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds hosts, and wakes who waits for them.
    pub fn add(&self, hosts: impl IntoIterator<Item = HostId>) {
        self.ids().extend(hosts);
        self.woken.notify_one();
    }

    /// Takes all of them.
    pub fn take(&self) -> Vec<HostId> {
        std::mem::take(&mut *self.ids()).into_iter().collect()
    }

    /// Resolves when there are some.
    pub async fn any(&self) {
        while self.ids().is_empty() {
            self.woken.notified().await;
        }
    }
}
