//! The power state of every VM as libvirt last told: what a ping answers without waiting for libvirt.
//!
//! While libvirt does not answer the cache keeps what it knew, but says so: nobody is told "off" for
//! a VM whose state is not known.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use shared::id::VmId;
use shared::wire::event::AgentEvent;
use shared::wire::vm::{PowerState, VmReport, digest};
use tokio::sync::{broadcast, watch};

use super::Summary;

/// Events that a slow receiver may fall behind before it has to compare a full list.
const BACKLOG: usize = 1024;

/// Why the content is not to be trusted before the first attempt to connect has ended.
pub const NOT_YET: &str = "not connected yet";

/// See the module.
#[derive(Debug)]
pub struct Cache {
    inner: Mutex<Inner>,
    events: broadcast::Sender<AgentEvent>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    vms: HashMap<VmId, VmReport>,
    /// Why the content is not to be trusted; `None` when it is.
    stale: Option<String>,
    /// How often a VM has come, gone or done something else.
    changes: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner { vms: HashMap::new(), stale: Some(NOT_YET.into()), changes: 0 }),
            events: broadcast::channel(BACKLOG).0,
            changes: watch::channel(0).0,
        }
    }
}

impl Cache {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the content is not to be trusted until the next [`Cache::replace`].
    pub fn set_stale(&self, reason: &str) {
        self.lock().stale = Some(reason.to_string());
    }

    /// Why the content is not to be trusted, when it is not.
    #[must_use]
    pub fn stale(&self) -> Option<String> {
        self.lock().stale.clone()
    }

    /// Takes a full listing, and tells what differs from what was known.
    pub fn replace(&self, vms: Vec<VmReport>) {
        let mut inner = self.lock();
        let mut old = std::mem::take(&mut inner.vms);
        inner.stale = None;
        for report in vms {
            let known = old.remove(&report.vm_id);
            if known.is_none_or(|known| known.power != report.power) {
                self.tell(&mut inner, AgentEvent::VmChanged { vm: report.clone() });
            }
            inner.vms.insert(report.vm_id, report);
        }
        for vm_id in old.into_keys() {
            self.tell(&mut inner, AgentEvent::VmGone { vm_id });
        }
        drop(inner);
        self.bump();
    }

    /// Takes what was just read about one VM; `None` when it has no domain of Kring's any more.
    pub fn put(&self, vm_id: VmId, report: Option<VmReport>) {
        let mut inner = self.lock();
        match report {
            Some(report) => {
                let known = inner.vms.insert(vm_id, report.clone());
                if known.is_none_or(|known| known.power != report.power) {
                    self.tell(&mut inner, AgentEvent::VmChanged { vm: report });
                }
            }
            None => {
                if inner.vms.remove(&vm_id).is_some() {
                    self.tell(&mut inner, AgentEvent::VmGone { vm_id });
                }
            }
        }
        drop(inner);
        self.bump();
    }

    /// Wakes those who wait for a change.
    pub fn bump(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn tell(&self, inner: &mut Inner, event: AgentEvent) {
        inner.changes = inner.changes.wrapping_add(1);
        // Nobody listens when the agent is only being started or stopped.
        let _ = self.events.send(event);
    }

    /// See [`super::Hypervisor::summary`].
    pub fn summary(&self) -> Result<Summary, String> {
        let inner = self.lock();
        match &inner.stale {
            Some(reason) => Err(reason.clone()),
            None => {
                let digest = digest(inner.vms.values().map(|vm| (&vm.vm_id, &vm.power)));
                Ok(Summary { digest, changes: inner.changes })
            }
        }
    }

    /// See [`super::Hypervisor::power`].
    #[must_use]
    pub fn power(&self, vm_id: VmId) -> Option<PowerState> {
        let inner = self.lock();
        if inner.stale.is_some() { None } else { inner.vms.get(&vm_id).map(|vm| vm.power) }
    }

    /// See [`super::Hypervisor::events`].
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.events.subscribe()
    }

    /// See [`super::Hypervisor::changes`].
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(vm_id: VmId, power: PowerState) -> VmReport {
        VmReport { vm_id, power, generation: 1 }
    }

    #[test]
    fn the_digest_is_unknown_until_a_listing_and_after_a_loss() {
        let cache = Cache::default();
        assert!(cache.summary().is_err());
        cache.replace(Vec::new());
        assert_eq!(cache.summary(), Ok(Summary { digest: 0, changes: 0 }));
        cache.set_stale("hung");
        assert_eq!(cache.summary(), Err("hung".to_string()));
        assert_eq!(cache.power(VmId::new()), None);
    }

    #[test]
    fn the_digest_is_that_of_the_wire_and_does_not_depend_on_the_order() {
        let (a, b) = (VmId::new(), VmId::new());
        let cache = Cache::default();
        cache.replace(vec![report(a, PowerState::Running), report(b, PowerState::Stopped)]);
        let expected = digest([(&b, &PowerState::Stopped), (&a, &PowerState::Running)]);
        assert_eq!(cache.summary(), Ok(Summary { digest: expected, changes: 2 }));
        cache.put(b, Some(report(b, PowerState::Crashed)));
        assert_eq!(cache.summary().unwrap().digest, digest([(&b, &PowerState::Crashed), (&a, &PowerState::Running)]));
    }

    #[test]
    fn what_was_and_is_again_shows_in_the_count_of_changes() {
        let (cache, vm) = (Cache::default(), VmId::new());
        cache.replace(vec![report(vm, PowerState::Running)]);
        let before = cache.summary().unwrap();
        cache.put(vm, Some(report(vm, PowerState::Running)));
        assert_eq!(cache.summary().unwrap(), before);
        cache.put(vm, Some(report(vm, PowerState::Stopped)));
        cache.put(vm, Some(report(vm, PowerState::Running)));
        let after = cache.summary().unwrap();
        assert_eq!((after.digest, after.changes), (before.digest, before.changes + 2));
    }

    #[test]
    fn only_differences_are_told_and_every_reading_wakes_those_who_wait() {
        let (a, b) = (VmId::new(), VmId::new());
        let cache = Cache::default();
        let mut changes = cache.changes();
        cache.replace(vec![report(a, PowerState::Running), report(b, PowerState::Running)]);
        let mut events = cache.events();
        changes.borrow_and_update();
        cache.replace(vec![report(a, PowerState::Running), report(b, PowerState::Paused)]);
        cache.put(a, Some(report(a, PowerState::Running)));
        cache.put(b, None);
        cache.put(b, None);
        assert!(changes.has_changed().unwrap());
        assert_eq!(events.try_recv().unwrap(), AgentEvent::VmChanged { vm: report(b, PowerState::Paused) });
        assert_eq!(events.try_recv().unwrap(), AgentEvent::VmGone { vm_id: b });
        assert!(events.try_recv().is_err());
    }
}
