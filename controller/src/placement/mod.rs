//! Placement: which host takes a VM.
//!
//! Every host is kept in memory as a place ([`index`]), ordered by how much is left, so that a decision
//! looks at a few hosts however many there are. The picture may be a moment old; the reservation, in its
//! own transaction, is the judge. What keeps it true:
//! - each commit here names the hosts that it touched, and they are read again a moment later;
//! - a host that is chosen counts as taken at once, so those who come at the same time choose others;
//! - when the picture is old, everything is read again: other controllers reserve as well. Where there are
//!   others, it is also read before anybody is told that there is no place; where there cannot be, that is
//!   rare, and only to be sure.

mod filter;
mod index;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::api::vm::PlacementReport;
use shared::id::{HostId, StorageId};
use shared::{Error, Result};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::db::placement::Request;
use crate::db::{self, Db, Dialect};
pub use filter::given_away;
use index::Index;

/// Touched hosts are read again this long after the last time: many commits, one query.
const GATHER: Duration = Duration::from_millis(20);
/// Hosts that are read in one query.
const GROUP: usize = 256;
/// A host that was chosen is read again after this long, whatever became of the VM.
const TAKEN: Duration = Duration::from_secs(1);
/// Age at which the picture is read again when somebody uses it: at least this, and so many times what
/// the reading takes.
const OLD: Duration = Duration::from_secs(2);
/// The same where nobody else writes to the database.
const OLD_WHEN_ALONE: Duration = Duration::from_secs(600);
const READS_APART: u32 = 50;

/// The hosts as places for VMs.
pub struct Placement {
    db: Db,
    index: Mutex<Index>,
    /// Held while hosts are read.
    reading: tokio::sync::Mutex<()>,
    /// How many times reading everything has begun.
    begun: AtomicU64,
    old: Notify,
}

impl Placement {
    /// Begins to read the hosts, so that the first who asks need not wait for all of them. Follows what is written
    /// until `stop`.
    #[must_use]
    pub fn start(db: Db, tasks: &TaskTracker, stop: CancellationToken) -> Arc<Self> {
        let placement = Arc::new(Self {
            db,
            index: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            begun: AtomicU64::new(0),
            old: Notify::new(),
        });
        let follower = Arc::clone(&placement);
        tasks.spawn(async move { stop.run_until_cancelled(follower.follow()).await });
        placement
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The best places for a VM, at most `most`, best first; the first counts as taken from now on.
    ///
    /// # Errors
    /// `no_host_fits` with what each filter dropped; failures of the database.
    pub async fn shortlist(&self, request: &Request, most: usize) -> Result<Vec<(HostId, StorageId)>> {
        if self.index().is_outdated() {
            self.read_all().await?;
        }
        if let Some(found) = self.take(request, most) {
            return Ok(found);
        }
        // Others may have given back what they had.
        self.read_recent().await?;
        if let Some(found) = self.take(request, most) {
            return Ok(found);
        }
        if self.db.dialect() != Dialect::Sqlite {
            // They may have done so on another controller.
            self.read_all().await?;
        }
        self.take(request, most).ok_or_else(|| filter::refusal(&filter::report(self.index().places(), request)))
    }

    /// Reads again what was written to here, and the hosts that count as taken whatever became of it.
    async fn read_recent(&self) -> Result<()> {
        if self.index().is_unread() {
            // It may be that they are being read.
            drop(self.reading.lock().await);
            if self.index().is_unread() {
                return self.read_all().await;
            }
        }
        let taken = self.index().checks(Instant::now());
        self.db.touched_hosts().add(taken);
        self.read_touched().await
    }

    /// What would be chosen for a VM, and what each filter drops.
    ///
    /// # Errors
    /// Failures of the database.
    pub async fn plan(&self, request: &Request) -> Result<PlacementReport> {
        if self.index().is_old() {
            self.read_all().await?;
        } else {
            self.read_touched().await?;
        }
        let index = self.index();
        let mut report = filter::report(index.places(), request);
        report.chosen = index.best(request, 1).first().map(|(host, _)| *host);
        Ok(report)
    }

    fn take(&self, request: &Request, most: usize) -> Option<Vec<(HostId, StorageId)>> {
        let mut index = self.index();
        if index.is_old() && !index.is_unread() {
            self.old.notify_one();
        }
        let found = index.best(request, most);
        index.take(*found.first()?, request);
        Some(found)
    }

    /// Reads every host again. Those who come while it is being read wait for the next reading, which they
    /// share.
    async fn read_all(&self) -> Result<()> {
        let before = self.begun.load(SeqCst);
        let _reading = self.reading.lock().await;
        if self.begun.load(SeqCst) > before {
            // It began after the caller came, and it has ended.
            return Ok(());
        }
        self.begun.fetch_add(1, SeqCst);
        let begin = Instant::now();
        let read = self.db.read_many(|conn| {
            Box::pin(async move {
                let mut fresh = Index::default();
                db::placement::each(conn, |place| fresh.put(place)).await?;
                Ok(fresh)
            })
        });
        let mut fresh = db::soon(read).await.map_err(Error::from)?;
        let at_least = if self.db.dialect() == Dialect::Sqlite { OLD_WHEN_ALONE } else { OLD };
        let (good, now) = ((begin.elapsed() * READS_APART).max(at_least), Instant::now());
        fresh.old_at(now + good);
        if self.db.dialect() != Dialect::Sqlite {
            fresh.outdated_at(now + good * 2);
        }
        *self.index() = fresh;
        Ok(())
    }

    /// Reads again what was touched, and everything when it is old.
    async fn follow(&self) {
        let touched = self.db.touched_hosts();
        self.old.notify_one();
        loop {
            let taken = self.index().next_check(TAKEN);
            let result = tokio::select! {
                () = touched.any() => self.read_touched().await,
                () = due(taken) => {
                    touched.add(self.index().checks(Instant::now() - TAKEN));
                    Ok(())
                }
                () = self.old.notified() => self.read_all().await,
            };
            if let Err(error) = result {
                tracing::debug!(error = error.chain(), "the places could not be read; they are read again later");
                let mut index = self.index();
                // What was never read is not old: who asks for a place reads it then, and waits for that.
                if !index.is_unread() {
                    index.old_at(Instant::now());
                }
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn read_touched(&self) -> Result<()> {
        let _reading = self.reading.lock().await;
        let hosts = self.db.touched_hosts().take();
        if self.index().is_unread() {
            // It could not be read yet: who asks for a place has everything read.
            return Ok(());
        }
        for group in hosts.chunks(GROUP) {
            let asked = group.to_vec();
            let read =
                self.db.read_many(move |conn| Box::pin(async move { db::placement::of_hosts(conn, &asked).await }));
            let found = db::soon(read).await.map_err(Error::from)?;
            let mut index = self.index();
            for host in group {
                index.remove(*host);
            }
            found.into_iter().for_each(|place| index.put(place));
        }
        Ok(())
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::placement::Place;
    use crate::db::testing::{Seed, sqlite};

    /// Nobody follows what is written, as if the first reading had failed.
    fn unfollowed(db: &Db) -> Arc<Placement> {
        let stop = CancellationToken::new();
        stop.cancel();
        Placement::start(db.clone(), &TaskTracker::new(), stop)
    }

    /// Whoever asks first after a start must not wait for a hundred thousand hosts to be read.
    #[tokio::test]
    async fn the_hosts_are_read_before_anybody_asks_for_a_place() {
        let db = sqlite().await;
        let seed = Seed::planted(&db).await;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let placement = Placement::start(db.clone(), &tasks, stop.clone());
        let read = async {
            while placement.index().places().all(|place| place.host_id != seed.host.id) {
                tokio::time::sleep(GATHER).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), read).await.unwrap();
        stop.cancel();
    }

    /// What could not be read at the start is not taken for a cloud without hosts.
    #[tokio::test]
    async fn who_asks_has_the_hosts_read_when_they_could_not_be_read_before() {
        let db = sqlite().await;
        let seed = Seed::planted(&db).await;
        let placement = unfollowed(&db);
        placement.read_recent().await.unwrap();
        assert!(placement.index().places().any(|place| place.host_id == seed.host.id));
    }

    /// What another controller wrote since, while nobody asked here, counts for the first who asks.
    #[tokio::test]
    async fn nobody_is_placed_by_a_picture_that_was_not_looked_at_for_long() {
        let db = sqlite().await;
        let seed = Seed::planted(&db).await;
        let placement = unfollowed(&db);
        placement.read_all().await.unwrap();
        let gone = HostId::new();
        {
            let mut index = placement.index();
            let place = index.places().find(|place| place.host_id == seed.host.id).cloned().unwrap();
            index.remove(seed.host.id);
            index.put(Place { host_id: gone, ..place });
            index.outdated_at(Instant::now());
        }
        let found = placement.shortlist(&filter::testing::request(), 1).await;
        assert!(placement.index().places().all(|place| place.host_id != gone), "{found:?}");
        assert!(placement.index().places().any(|place| place.host_id == seed.host.id), "{found:?}");
    }
}
