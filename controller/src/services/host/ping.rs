//! Signs of life of the hosts that are owned here.
//!
//! Each ping is a connection of its own and shares no slot with others: a dead host delays nobody. They are
//! made on a thread of their own, so that other work delays none of them, and they cost no switches between
//! threads; what follows from an answer is done with everything else. When there is more to do than the thread can,
//! pings are late and not missed: only so many are begun before those that are on their way get their turn, and a
//! silence that was noticed late, or that has its reason here, is not held against a host. When a host tells of
//! other VMs than before, it is asked for everything only if the database does not say the same: what Kring itself
//! has done there is no news.

use std::collections::HashSet;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use shared::id::{HostId, ResourceId};
use shared::{Error, Result};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::schedule::{Found, Rhythm, Schedule, Told};
use crate::agent_client::HostRef;
use crate::cx::Cx;
use crate::db::{self, host::Reach};
use crate::messages::host::{CompareHost, HostMissed};
use crate::services::Context;
use crate::thread;

/// How often the whole list of hosts is read again; what is written here is known at once.
const REFRESH: Duration = Duration::from_secs(60);
/// When it is tried again after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Hosts that are read in one query.
const PAGE: u32 = 1000;
/// What is due within so long is asked together: the thread that does it is woken less often.
const TOGETHER: Duration = Duration::from_millis(20);
/// Pings that are begun before all others get their turn.
const AT_ONCE: usize = 64;
/// A time-out that fires so much after its time says that this thread was late; the answer may have come.
const LATE: Duration = Duration::from_millis(200);
/// How long a comparison or a disconnection may take.
const FOLLOW_UP: Duration = Duration::from_secs(90);

/// Pings the hosts that are owned here, until `stop`.
///
/// # Errors
/// When there can be no thread.
pub fn start(context: Context, tasks: &TaskTracker, stop: CancellationToken) -> io::Result<()> {
    let (schedule, sooner, others) = (Arc::default(), Arc::default(), Handle::current());
    let driver = Driver { context, schedule, sooner, tasks: tasks.clone(), others };
    let run = async move {
        stop.run_until_cancelled(driver.run()).await;
    };
    thread::own("pings", run, CancellationToken::new(), tasks).map(drop)
}

/// Something is being read from the database.
type Reading = JoinHandle<Result<()>>;

#[derive(Clone)]
struct Driver {
    context: Context,
    schedule: Arc<Mutex<Schedule>>,
    /// Another host is due next than was thought.
    sooner: Arc<Notify>,
    tasks: TaskTracker,
    /// Where everything else is done.
    others: Handle,
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
        let (mut read_at, mut reading) = (Instant::now(), None);
        let mut not_before = Instant::now();
        loop {
            let next = self.schedule().next().map(|due| due.max(not_before));
            tokio::select! {
                _ = ring_changes.changed() => {
                    if generation.replace(ring.generation()) != Some(ring.generation()) {
                        read_at = Instant::now();
                    }
                }
                () = at(next) => {
                    if self.ping_due() < AT_ONCE {
                        not_before = Instant::now() + TOGETHER;
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
                () = self.sooner.notified() => {}
                read = ended(&mut reading) => {
                    reading = None;
                    if let Err(error) = read {
                        tracing::warn!(error = error.chain(), "the list of hosts could not be read");
                        read_at = Instant::now() + RETRY;
                    }
                }
                () = tokio::time::sleep_until(read_at), if reading.is_none() => {
                    read_at = Instant::now() + REFRESH;
                    reading = Some(self.elsewhere(self.clone().read_all()));
                }
                () = changed.any(), if reading.is_none() => {
                    reading = Some(self.elsewhere(self.clone().read_some(changed.take())));
                }
            }
        }
    }

    /// No ping waits for what is read, and connections to the database must not end with this thread.
    fn elsewhere(&self, read: impl Future<Output = Result<()>> + Send + 'static) -> Reading {
        self.tasks.spawn_on(db::soon(read), &self.others)
    }

    /// Takes over what the database says of all hosts.
    async fn read_all(self) -> Result<()> {
        let (mut seen, mut after) = (HashSet::new(), None);
        loop {
            let page = self.context.deps.db.read_many(move |conn| db::host::reach_after(conn, after, PAGE).boxed());
            let page = page.await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            seen.extend(self.put(page));
        }
        let gone = self.schedule().retain(|id| seen.contains(&id));
        gone.into_iter().for_each(|id| self.context.deps.agents.forget(id));
        Ok(())
    }

    /// Takes over what the database says of hosts that were written to.
    async fn read_some(self, hosts: Vec<HostId>) -> Result<()> {
        for some in hosts.chunks(PAGE as usize) {
            let asked = some.to_vec();
            let rows = self
                .context
                .deps
                .db
                .read_many(move |conn| async move { db::host::reach_of(conn, &asked).await }.boxed());
            let there: HashSet<_> = self.put(rows.await?).into_iter().collect();
            let mut schedule = self.schedule();
            for id in some.iter().filter(|id| !there.contains(id)) {
                schedule.remove(*id);
                self.context.deps.agents.forget(*id);
            }
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

    /// Answers how many.
    fn ping_due(&self) -> usize {
        let due = self.schedule().take_due(self.rhythm(), Instant::now(), AT_ONCE);
        let begun = due.len();
        for host in due {
            let busy = Busy { driver: self.clone(), host: host.id };
            self.tasks.spawn(busy.ping(host));
        }
        begun
    }
}

/// A host that is being pinged, with what follows from its answer. It is pinged again only after this is
/// dropped, whatever has happened.
struct Busy {
    driver: Driver,
    host: HostId,
}

impl Deref for Busy {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.schedule().done(self.host) {
            self.sooner.notify_one();
        }
    }
}

impl Busy {
    async fn ping(self, host: HostRef) {
        let (timeout, begin) = (self.context.deps.settings.seconds("host.ping_timeout"), Instant::now());
        let answer = self.context.deps.agents.ping(&host, timeout).await;
        let late = begin.elapsed() > timeout + LATE;
        if let Err(error) = &answer {
            tracing::debug!(host.id = %self.host, error = error.chain(), late, "a ping failed");
        }
        let found = self.schedule().heard(self.host, answer, late, self.rhythm(), Instant::now());
        if found != Found::Nothing {
            let (on, tasks) = (self.driver.others.clone(), self.driver.tasks.clone());
            tasks.spawn_on(self.follow(found), &on);
        }
    }

    async fn follow(self, found: Found) {
        if let Err(error) = self.act_on(found).await {
            tracing::warn!(host.id = %self.host, error = error.chain(), detail = error.detail, "a host could not be compared; trying again with the next ping");
        }
    }

    async fn act_on(&self, found: Found) -> Result<()> {
        let id = self.host;
        match found {
            Found::Nothing => Ok(()),
            Found::Missed(reason) => {
                self.context.bus()?.call(&Cx::system(FOLLOW_UP), HostMissed { id, reason }).await?;
                self.schedule().mourned(id);
                Ok(())
            }
            Found::Changed(told) => match self.context.deps.db.digests.get(id).await? {
                Some(expected) if expected == told.digest => {
                    self.schedule().agrees(id, told);
                    Ok(())
                }
                _ => self.compare(told).await,
            },
            Found::Compare(told) => self.compare(told).await,
        }
    }

    /// What jobs held, or a storage that cannot be used, is compared again with the next ping.
    async fn compare(&self, told: Told) -> Result<()> {
        let id = self.host;
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

/// Resolves when what is being read has been read; never, when nothing is.
async fn ended(reading: &mut Option<Reading>) -> Result<()> {
    match reading {
        Some(reading) => reading.await.unwrap_or_else(|panicked| Err(Error::internal(panicked))),
        None => std::future::pending().await,
    }
}

/// Resolves at a moment, or never.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
