//! Faults that are switched on and off while the hosts run.
//!
//! A fault names the requests that it hits (path, hosts, how often) and what happens to them. Whether
//! a fault with a probability hits is a function of the seed, the host and the number of the request
//! on that host, so a run with one request at a time per host can be repeated.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::id::HostId;
use shared::{Code, Error};
use tokio_util::sync::CancellationToken;

/// What happens to a request or to the callback of its task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// The work begins later.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// The work is not done and answered with an error.
    Fail {
        /// The error's code.
        code: Code,
    },
    /// The work is done, and answered with an error all the same.
    FailAfter {
        /// The error's code.
        code: Code,
    },
    /// Half of the work is done, then it fails.
    FailHalfway {
        /// The error's code.
        code: Code,
    },
    /// Half of the work is done, then the agent is gone and back without its tasks.
    RestartHalfway,
    /// The work is done, then the agent is gone and back without its tasks, before it answered.
    RestartAfter,
    /// The connection breaks before anything is done.
    DropBefore,
    /// The connection breaks after the work is done.
    DropAfter,
    /// The request is never answered and nothing is done.
    Silence,
    /// The request is kept on its way until the fault is taken away, and arrives then, also when nobody
    /// waits for the answer any more.
    Held,
    /// The work is done, and nobody is told: neither by an answer nor by a callback.
    Unanswered,
    /// The work is accepted and never ends, unless it is cancelled.
    Hang,
    /// The answer is `202` and the outcome goes to the callback.
    Defer,
    /// The callback is not posted.
    CallbackLost,
    /// The callback is posted twice.
    CallbackTwice,
    /// The callback is posted later.
    CallbackLate {
        /// Milliseconds.
        ms: u64,
    },
    /// An older report follows the outcome.
    CallbackReordered,
}

/// The requests that a fault hits, and what happens to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// `<noun>/<verb>` of a command, `<noun>/*`, `*` for all commands, or `ping`.
    pub path: String,
    /// Base of the callbacks of one controller, whose commands alone are hit; those of all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// One host; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Part of the hosts, 0 to 1, whose requests are hit; always the same ones of a seed.
    #[serde(default = "always")]
    pub hosts: f64,
    /// How likely a request is hit, 0 to 1.
    #[serde(default = "always")]
    pub probability: f64,
    /// How many requests are hit at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// How many requests that match are let through first.
    #[serde(default)]
    pub skip: u32,
    /// What happens.
    pub what: What,
}

/// Stands for no request, where it is about the host.
const OF_THE_HOST: u64 = u64::MAX;

const fn always() -> f64 {
    1.0
}

impl Fault {
    /// A fault that hits every request for `path`.
    pub fn new(path: &str, what: What) -> Self {
        let path = path.to_string();
        Self { path, controller: None, host: None, hosts: 1.0, probability: 1.0, times: None, skip: 0, what }
    }

    /// Only what comes from this controller, by the base of its callbacks.
    #[must_use]
    pub fn from(mut self, controller: &str) -> Self {
        self.controller = Some(controller.to_string());
        self
    }

    /// Only on this host.
    #[must_use]
    pub const fn on(mut self, host: HostId) -> Self {
        self.host = Some(host);
        self
    }

    /// Only on this part of the hosts, 0 to 1.
    #[must_use]
    pub const fn on_part(mut self, hosts: f64) -> Self {
        self.hosts = hosts;
        self
    }

    /// At most `n` times.
    #[must_use]
    pub const fn times(mut self, n: u32) -> Self {
        self.times = Some(n);
        self
    }

    /// Only after `n` matching requests.
    #[must_use]
    pub const fn after(mut self, n: u32) -> Self {
        self.skip = n;
        self
    }

    /// With this probability, 0 to 1.
    #[must_use]
    pub const fn likely(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    fn matches(&self, host: HostId, path: &str, from: &str) -> bool {
        if self.controller.as_ref().is_some_and(|controller| !from.starts_with(controller.as_str())) {
            return false;
        }
        let on_path = match self.path.strip_suffix('*') {
            Some("") => path != "ping",
            Some(prefix) => path.starts_with(prefix),
            None => self.path == path,
        };
        on_path && self.host.is_none_or(|wanted| wanted == host)
    }
}

/// Names a fault that is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultId(pub u64);

/// All faults of one simulator.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    next: AtomicU64,
    active: Mutex<Vec<Active>>,
}

#[derive(Debug)]
struct Active {
    id: FaultId,
    fault: Fault,
    seen: u32,
    hits: u32,
    /// Fires when the fault is taken away.
    over: CancellationToken,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, next: AtomicU64::new(1), active: Mutex::default() }
    }

    /// Switches a fault on.
    pub fn add(&self, fault: Fault) -> FaultId {
        let id = FaultId(self.next.fetch_add(1, Relaxed));
        self.lock().push(Active { id, fault, seen: 0, hits: 0, over: CancellationToken::new() });
        id
    }

    /// Switches a fault off. Answers how many requests it has hit.
    pub fn remove(&self, id: FaultId) -> u32 {
        let mut active = self.lock();
        let at = active.iter().position(|a| a.id == id);
        at.map_or(0, |at| active.remove(at).hits)
    }

    /// Switches all faults off.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// How many requests a fault has hit.
    #[must_use]
    pub fn hits(&self, id: FaultId) -> u32 {
        self.lock().iter().find(|a| a.id == id).map_or(0, |a| a.hits)
    }

    /// The faults that are on, with the number of their hits.
    #[must_use]
    pub fn list(&self) -> Vec<(FaultId, Fault, u32)> {
        self.lock().iter().map(|a| (a.id, a.fault.clone(), a.hits)).collect()
    }

    /// What happens to the `n`th request on a host, from whoever is called back at `from`.
    pub(super) fn plan(&self, host: HostId, path: &str, from: &str, n: u64) -> Plan {
        let mut plan = Plan::default();
        let salt =
            u64::from_le_bytes(shared::id::ResourceId::uuid(host).as_bytes()[8..].try_into().unwrap_or_default());
        for active in self.lock().iter_mut().filter(|a| a.fault.matches(host, path, from)) {
            let seed = self.seed ^ active.id.0.rotate_left(32);
            if chance(seed, salt, OF_THE_HOST) >= active.fault.hosts {
                continue;
            }
            active.seen += 1;
            let spent = active.fault.times.is_some_and(|times| active.hits >= times);
            if spent || active.seen <= active.fault.skip {
                continue;
            }
            if chance(seed, salt, n) < active.fault.probability {
                active.hits += 1;
                plan.add(&active.fault, &active.over);
            }
        }
        plan
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number from 0 to 1 that depends on its arguments alone (the finaliser of SplitMix64).
pub(super) fn chance(seed: u64, salt: u64, n: u64) -> f64 {
    let mut z = seed ^ salt.rotate_left(17) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

/// Where an operation is broken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Halfway {
    Fail(Error),
    Restart,
}

/// What happens to one request: everything that the faults which hit it say.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub delay: Duration,
    pub fail: Option<Error>,
    pub fail_after: Option<Error>,
    pub halfway: Option<Halfway>,
    pub restart_after: bool,
    pub drop_before: bool,
    pub drop_after: bool,
    pub silence: bool,
    pub held: Option<CancellationToken>,
    pub hang: bool,
    pub unanswered: bool,
    pub defer: bool,
    pub callback_lost: bool,
    pub callback_twice: bool,
    pub callback_late: Duration,
    pub callback_reordered: bool,
}

impl Plan {
    fn add(&mut self, fault: &Fault, over: &CancellationToken) {
        let error = |code| Error::new(code, format!("a fault was injected into {}", fault.path));
        match &fault.what {
            What::Delay { ms } => self.delay += Duration::from_millis(*ms),
            What::Fail { code } => self.fail = Some(error(*code)),
            What::FailAfter { code } => self.fail_after = Some(error(*code)),
            What::FailHalfway { code } => self.halfway = Some(Halfway::Fail(error(*code))),
            What::RestartHalfway => self.halfway = Some(Halfway::Restart),
            What::RestartAfter => self.restart_after = true,
            What::DropBefore => self.drop_before = true,
            What::DropAfter => self.drop_after = true,
            What::Silence => self.silence = true,
            What::Held => self.held = Some(over.clone()),
            What::Unanswered => (self.unanswered, self.callback_lost) = (true, true),
            What::Hang => self.hang = true,
            What::Defer => self.defer = true,
            What::CallbackLost => (self.defer, self.callback_lost) = (true, true),
            What::CallbackTwice => (self.defer, self.callback_twice) = (true, true),
            What::CallbackLate { ms } => {
                (self.defer, self.callback_late) = (true, Duration::from_millis(*ms));
            }
            What::CallbackReordered => (self.defer, self.callback_reordered) = (true, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_what_it_names_and_as_often_as_it_says() {
        let faults = Faults::new(1);
        let (a, b) = (HostId::new(), HostId::new());
        let id = faults.add(Fault::new("vm/*", What::DropBefore).on(a).times(2).after(1));
        let hit = |host, path: &str| faults.plan(host, path, "", 0).drop_before;
        assert!(!hit(a, "vm/ensure"), "the first one is let through");
        assert!(!hit(a, "image/ensure") && !hit(b, "vm/ensure") && !hit(a, "ping"));
        assert!(hit(a, "vm/stop") && hit(a, "vm/ensure") && !hit(a, "vm/ensure"));
        assert_eq!((faults.hits(id), faults.remove(id), faults.remove(id)), (2, 2, 0));
    }

    #[test]
    fn a_fault_may_hit_a_part_of_the_hosts_and_then_always_the_same() {
        let faults = Faults::new(1);
        faults.add(Fault::new("*", What::DropBefore).on_part(0.25));
        let hosts: Vec<HostId> = (0..1000_u32).map(|_| HostId::from_uuid(uuid::Uuid::new_v4())).collect();
        let hit = |n| hosts.iter().map(|host| faults.plan(*host, "vm/stop", "", n).drop_before).collect::<Vec<_>>();
        let first = hit(0);
        assert!((180..320).contains(&first.iter().filter(|hit| **hit).count()));
        assert!((1..5).all(|n| hit(n) == first));
    }

    #[test]
    fn chance_is_repeatable_and_even() {
        assert_eq!(chance(1, 2, 3).to_bits(), chance(1, 2, 3).to_bits());
        let hits = (0..10_000).filter(|n| chance(7, 99, *n) < 0.3).count();
        assert!((2800..3200).contains(&hits), "{hits}");
    }

    #[test]
    fn a_fault_is_read_as_the_control_port_gets_it() {
        let text = r#"{"path": "vm/ensure", "what": {"kind": "fail", "code": "no_space"}, "times": 1}"#;
        let fault: Fault = serde_json::from_str(text).unwrap();
        assert_eq!(fault, Fault::new("vm/ensure", What::Fail { code: Code::NoSpace }).times(1));
    }
}
