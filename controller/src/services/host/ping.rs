//! Signs of life of the hosts that are owned here.
//!
//! Each ping is a connection of its own and shares no slot with others: a dead host delays nobody. When
//! a host tells of other VMs than before, it is asked for everything only if the database does not say the
//! same: what Kring itself has done there is no news.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::id::{HostId, ResourceId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::schedule::{Found, Rhythm, Schedule, Told};
use crate::agent_client::HostRef;
use crate::cx::Cx;
use crate::db::{self, host::Reach};
use crate::messages::host::{CompareHost, HostMissed};
use crate::services::Context;

/// How often the whole list of hosts is read again; what is written here is known at once.
const REFRESH: Duration = Duration::from_secs(60);
/// When it is tried again after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Hosts that are read in one query.
const PAGE: u32 = 1000;
/// How long a comparison or a disconnection may take.
const FOLLOW_UP: Duration = Duration::from_secs(90);

/// Pings the hosts that are owned here, until `stop`.
pub async fn run(context: Context, tasks: TaskTracker, stop: CancellationToken) {
    stop.run_until_cancelled(Driver { context, schedule: Arc::default(), sooner: Arc::default(), tasks }.run()).await;
}

#[derive(Clone)]
struct Driver {
    context: Context,
    schedule: Arc<Mutex<Schedule>>,
    /// Another host is due next than was thought.
    sooner: Arc<Notify>,
    tasks: TaskTracker,
}

impl Driver {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rhythm(&self) -> Rhythm {
        let settings = &self.context.deps.settings;
        let misses = u32::try_from(settings.integer("host.ping_misses")).unwrap_or(u32::MAX);
        let (interval, compare) = (settings.seconds("host.ping_interval"), settings.seconds("host.compare_interval"));
        Rhythm { interval, misses, compare }
    }

    async fn run(self) {
        let (ring, changed) = (self.context.deps.ring.clone(), Arc::clone(self.context.deps.db.reached_hosts()));
        let (mut ring_changes, mut generation) = (ring.watch(), None);
        let mut read_at = Instant::now();
        loop {
            let next = self.schedule().next();
            let read = tokio::select! {
                _ = ring_changes.changed() => {
                    if generation.replace(ring.generation()) != Some(ring.generation()) {
                        read_at = Instant::now();
                    }
                    continue;
                }
                () = tokio::time::sleep_until(read_at) => {
                    read_at = Instant::now() + REFRESH;
                    db::soon(self.read_all()).await
                }
                () = changed.any() => db::soon(self.read_some(changed.take())).await,
                () = at(next) => {
                    self.ping_due();
                    continue;
                }
                () = self.sooner.notified() => continue,
            };
            if let Err(error) = read {
                tracing::warn!(error = error.chain(), "the list of hosts could not be read");
                read_at = Instant::now() + RETRY;
            }
        }
    }

    /// Takes over what the database says of all hosts.
    async fn read_all(&self) -> shared::Result<()> {
        let (mut seen, mut after) = (HashSet::new(), None);
        loop {
            let page = {
                let mut conn = self.context.deps.db.read().await?;
                db::host::reach_after(&mut conn, after, PAGE).await?
            };
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            seen.extend(self.put(page));
        }
        self.schedule().retain(|id| seen.contains(&id));
        Ok(())
    }

    /// Takes over what the database says of hosts that were written to.
    async fn read_some(&self, hosts: Vec<HostId>) -> shared::Result<()> {
        for some in hosts.chunks(PAGE as usize) {
            let rows = {
                let mut conn = self.context.deps.db.read().await?;
                db::host::reach_of(&mut conn, some).await?
            };
            let there: HashSet<_> = self.put(rows).into_iter().collect();
            let mut schedule = self.schedule();
            some.iter().filter(|id| !there.contains(id)).for_each(|id| schedule.remove(*id));
        }
        Ok(())
    }

    /// Takes over those that are owned here, and says which.
    fn put(&self, rows: Vec<Reach>) -> Vec<HostId> {
        let (rhythm, now, mut schedule) = (self.rhythm(), Instant::now(), self.schedule());
        let mine = rows.into_iter().filter(|row| self.context.deps.ring.is_mine(row.id.uuid()));
        mine.map(|row| {
            let id = row.id;
            schedule.put(row, rhythm, now);
            id
        })
        .collect()
    }

    fn ping_due(&self) {
        let due = self.schedule().take_due(self.rhythm(), Instant::now());
        for host in due {
            self.tasks.spawn(self.clone().ping(host));
        }
    }

    async fn ping(self, host: HostRef) {
        let timeout = self.context.deps.settings.seconds("host.ping_timeout");
        let answer = self.context.deps.agents.ping(&host, timeout).await;
        let found = self.schedule().heard(host.id, answer, self.rhythm(), Instant::now());
        if let Err(error) = self.follow(host.id, found).await {
            tracing::warn!(host.id = %host.id, error = error.chain(), detail = error.detail, "a host could not be compared; trying again with the next ping");
        }
        if self.schedule().done(host.id) {
            self.sooner.notify_one();
        }
    }

    async fn follow(&self, id: HostId, found: Found) -> shared::Result<()> {
        match found {
            Found::Nothing => Ok(()),
            Found::Missed(reason) => self.context.bus()?.call(&Cx::system(FOLLOW_UP), HostMissed { id, reason }).await,
            Found::Changed(told) => match self.context.deps.db.digests.get(id).await? {
                Some(expected) if expected == told.digest => {
                    self.schedule().agrees(id, told);
                    Ok(())
                }
                _ => self.compare(id, told).await,
            },
            Found::Compare(told) => self.compare(id, told).await,
        }
    }

    /// What jobs held, or a storage that cannot be used, is compared again with the next ping.
    async fn compare(&self, id: HostId, told: Told) -> shared::Result<()> {
        let complete = self.context.bus()?.call(&Cx::system(FOLLOW_UP), CompareHost { id }).await?;
        let pause = if complete { self.rhythm().compare } else { Duration::ZERO };
        self.schedule().compare_at(id, Instant::now() + pause);
        if complete {
            self.schedule().agrees(id, told);
        }
        // How it is reached now was written here, and is read as everything that is.
        Ok(())
    }
}

/// Resolves at a moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
