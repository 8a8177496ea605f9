//! What protects callers from one host: how many commands it is given at a time, and a breaker.
//!
//! ```text
//!            so many failed connections in a row            the pause is over
//! closed ─────────────────────────────────────────▶ open ──────────────────▶ half open (one command)
//!    ▲                                               ▲                         │        │
//!    └──────────── any answer, also to a ping ───────┼─────────────────────────┘        │
//!                                                    └──── no connection: longer ◀──────┘
//! ```
//!
//! While it is open, a command fails at once instead of costing its caller a time-out. Nothing is
//! shared between hosts, and a host that is idle and well has no entry here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::id::HostId;
use shared::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// The first pause of an open breaker; it doubles with each failure up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What one host may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Commands that one host is given at a time; more wait until their deadline.
    pub commands: usize,
    /// Failed connections in a row after which commands are refused at once.
    pub failures: u32,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self { commands: 64, failures: 5 }
    }
}

/// What became of commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFigures {
    /// Hosts whose breaker is open now.
    pub open: u64,
    /// How often a breaker opened.
    pub opened: u64,
    /// Commands that were refused because of one.
    pub refused: u64,
    /// Commands that are being carried out or wait for their turn.
    pub commands: u64,
    /// Requests that were sent to agents, pings among them.
    pub requests: u64,
    /// Connections that were made for them.
    pub connections: u64,
}

/// All hosts that something is going on with.
#[derive(Default)]
pub(super) struct Guards {
    hosts: Mutex<HashMap<HostId, Entry>>,
    commands: AtomicUsize,
    failures: AtomicU32,
    opened: AtomicU64,
    refused: AtomicU64,
}

struct Entry {
    /// Commands that have or await a place.
    users: usize,
    places: Arc<Semaphore>,
    failures: u32,
    /// When the next command may try, while the breaker is open.
    open_until: Option<Instant>,
    probing: bool,
}

/// A command's place at its host.
pub(super) struct Place<'a> {
    guards: &'a Guards,
    host: HostId,
    probe: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Guards {
    pub(super) fn new(limits: HostLimits) -> Self {
        let guards = Self::default();
        guards.set_limits(limits);
        guards
    }

    /// Changes the limits; those of places count for hosts that are idle.
    pub(super) fn set_limits(&self, limits: HostLimits) {
        self.commands.store(limits.commands.max(1), Relaxed);
        self.failures.store(limits.failures.max(1), Relaxed);
    }

    /// Takes a place at a host, waiting for it until `deadline`.
    pub(super) async fn enter(&self, host: HostId, deadline: Instant) -> Result<Place<'_>> {
        let (places, probe) = {
            let mut hosts = self.lock();
            let entry = hosts.entry(host).or_insert_with(|| self.entry());
            let probe = entry.open_until.is_some();
            if let Some(until) = entry.open_until {
                let left = until.saturating_duration_since(Instant::now());
                if entry.probing || !left.is_zero() {
                    self.refused.fetch_add(1, Relaxed);
                    return Err(refused(host, entry.failures, left));
                }
                entry.probing = true;
            }
            entry.users += 1;
            (Arc::clone(&entry.places), probe)
        };
        // From here on the place is given back by its drop.
        let mut place = Place { guards: self, host, probe, _permit: None };
        let permit = timeout_at(deadline, places.acquire_owned()).await;
        let busy =
            || Error::new(Code::Unavailable, format!("host {host} is busy with other commands; try again later"));
        place._permit = Some(permit.map_err(|_| busy())?.map_err(|_| busy())?);
        Ok(place)
    }

    /// The host has answered.
    pub(super) fn answered(&self, host: HostId) {
        let mut hosts = self.lock();
        let Some(entry) = hosts.get_mut(&host) else { return };
        if entry.open_until.take().is_some() {
            tracing::info!(host.id = %host, "the host answers again; commands are sent to it");
        }
        (entry.failures, entry.probing) = (0, false);
        if entry.users == 0 {
            hosts.remove(&host);
        }
    }

    /// The host is gone, or another controller's.
    pub(super) fn forget(&self, host: HostId) {
        let mut hosts = self.lock();
        if hosts.get(&host).is_some_and(|entry| entry.users == 0) {
            hosts.remove(&host);
        }
    }

    /// The host could not be reached.
    pub(super) fn failed(&self, host: HostId) {
        let most = self.failures.load(Relaxed);
        let mut hosts = self.lock();
        let entry = hosts.entry(host).or_insert_with(|| self.entry());
        entry.failures = entry.failures.saturating_add(1);
        if entry.failures < most {
            return;
        }
        if entry.open_until.is_none() {
            self.opened.fetch_add(1, Relaxed);
            tracing::warn!(host.id = %host, failures = entry.failures, "the host does not answer; commands to it fail at once");
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (entry.failures - most).min(8)).min(LONGEST_PAUSE);
        entry.open_until = Some(Instant::now() + pause.mul_f64(rand::random_range(0.8..1.2)));
        entry.probing = false;
    }

    pub(super) fn figures(&self) -> HostFigures {
        let hosts = self.lock();
        HostFigures {
            open: hosts.values().filter(|entry| entry.open_until.is_some()).count() as u64,
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
            commands: hosts.values().map(|entry| entry.users as u64).sum(),
            ..HostFigures::default()
        }
    }

    fn entry(&self) -> Entry {
        let places = Arc::new(Semaphore::new(self.commands.load(Relaxed)));
        Entry { users: 0, places, failures: 0, open_until: None, probing: false }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<HostId, Entry>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut hosts = self.guards.lock();
        let Some(entry) = hosts.get_mut(&self.host) else { return };
        entry.users = entry.users.saturating_sub(1);
        // A probe that was given up before it knew: the next command may try.
        entry.probing &= !self.probe;
        if entry.users == 0 && entry.failures == 0 {
            hosts.remove(&self.host);
        }
    }
}

fn refused(host: HostId, failures: u32, left: Duration) -> Error {
    let when = match left.as_secs_f64().ceil() {
        0.0 => "another command is trying it just now".to_string(),
        seconds => format!("it is tried again in {seconds} s"),
    };
    Error::new(Code::HostUnreachable, format!("host {host} did not answer {failures} times in a row: {when}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_opens_lets_one_try_and_closes_with_an_answer() {
        let guards = Guards::new(HostLimits { commands: 8, failures: 3 });
        let (dead, well) = (HostId::new(), HostId::new());
        for _ in 0..2 {
            guards.failed(dead);
        }
        drop(guards.enter(dead, soon()).await.unwrap());
        guards.failed(dead);
        let error = guards.enter(dead, soon()).await.err().unwrap();
        assert_eq!(error.code, Code::HostUnreachable);
        assert!(error.message.contains("tried again in"), "{}", error.message);
        drop(guards.enter(well, soon()).await.unwrap());
        tokio::time::advance(FIRST_PAUSE * 2).await;
        let probe = guards.enter(dead, soon()).await.unwrap();
        assert!(guards.enter(dead, soon()).await.is_err(), "one tries, the others do not wait for it");
        guards.failed(dead);
        drop(probe);
        assert!(guards.enter(dead, soon()).await.is_err(), "open again, for longer");
        assert_eq!(guards.figures(), HostFigures { open: 1, opened: 1, refused: 3, ..HostFigures::default() });
        guards.answered(dead);
        drop(guards.enter(dead, soon()).await.unwrap());
        assert!(guards.lock().is_empty(), "a host that is well and idle costs nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_leaves_the_next_one_a_try() {
        let guards = Guards::new(HostLimits { commands: 8, failures: 1 });
        let host = HostId::new();
        guards.failed(host);
        tokio::time::advance(FIRST_PAUSE * 2).await;
        drop(guards.enter(host, soon()).await.unwrap());
        assert!(guards.enter(host, soon()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_given_so_many_commands_and_others_are_not_held_up() {
        let guards = Guards::new(HostLimits { commands: 2, failures: 3 });
        let (busy, other) = (HostId::new(), HostId::new());
        let (first, _second) = (guards.enter(busy, soon()).await.unwrap(), guards.enter(busy, soon()).await.unwrap());
        let late = guards.enter(busy, Instant::now() + Duration::from_secs(1)).await.err().unwrap();
        assert_eq!(late.code, Code::Unavailable);
        guards.enter(other, soon()).await.unwrap();
        let (third, ()) = tokio::join!(guards.enter(busy, soon()), async { drop(first) });
        assert!(third.is_ok());
        assert_eq!(guards.figures().commands, 2);
    }
}
