//! The heartbeat: a thread and a database connection of its own, so that no load can keep it waiting.
//!
//! With each beat it touches this controller's row, reads everybody's, and removes those that are dead.
//! Each touch that the database confirmed renews the lease under which this controller acts
//! ([`Ring::may_act`]), counted by the monotonic clock from before the touch was sent. Without the
//! database the lease runs out, long before others would take over; when the database is back and the
//! row is still there, nobody has taken over and the controller goes on. When the row is gone, others
//! have: it fires `fenced`, and the process ends.
//!
//! It also tells the [`Clock`] what the database's says, so that all controllers have one time. When the database's
//! is set, silence was counted by two clocks: nobody is judged until all that live have touched their rows again.
//!
//! On SQLite there is nobody else, and a beat that fails takes no lease away.
//!
//! On PostgreSQL the connection holds a lock for as long as it exists, so the others see at once when a
//! controller's process has died, and need not wait for its silence.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use shared::id::ControllerId;
use shared::time::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::view::Heartbeats;
use super::{Ring, view};
use crate::clock::Clock;
use crate::db::controller::{ControllerRow, Membership};
use crate::db::{self, Dialect};

/// Time between two beats, with one database for one controller and for many.
const EVERY_ALONE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(500);
/// Least time between two beats.
const LEAST: Duration = Duration::from_millis(50);
/// How long the database may take to answer a beat.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who beats, and for whom.
pub struct Pulse {
    /// The database.
    pub url: String,
    /// Which kind it is.
    pub dialect: Dialect,
    /// The generation in which this controller joined.
    pub joined: u64,
    /// The ring whose lease is renewed.
    pub ring: Ring,
    /// The clock that follows the database's.
    pub clock: Clock,
    /// Fires when this controller must not act any more.
    pub fenced: CancellationToken,
}

/// What the thread does before its time.
enum Next {
    Beat,
    Stop,
}

/// A running heartbeat. Dropping it ends the thread.
pub struct Heartbeat {
    next: Sender<Next>,
    thread: Option<std::thread::JoinHandle<()>>,
    seen: watch::Receiver<Membership>,
    beats: Arc<AtomicU64>,
}

impl Heartbeat {
    /// Starts to beat.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(pulse: Pulse) -> std::io::Result<Self> {
        let (next, does) = mpsc::channel();
        let (seen, sees) = watch::channel(Membership::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let every = if pulse.dialect == Dialect::Sqlite { EVERY_ALONE } else { EVERY };
        let beats = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&beats);
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let mut heart = Heart {
                me: pulse.ring.me(),
                pulse,
                born: Instant::now(),
                heartbeats: Heartbeats::default(),
                conn: None,
                failing: false,
                every,
                pause: every,
            };
            loop {
                if runtime.block_on(heart.beat(&seen)) {
                    return heart.pulse.fenced.cancel();
                }
                count.fetch_add(1, Ordering::Relaxed);
                match does.recv_timeout(heart.pause) {
                    Ok(Next::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                    // One beat answers all who asked for one meanwhile.
                    Ok(Next::Beat) => {
                        if does.try_iter().any(|next| matches!(next, Next::Stop)) {
                            return;
                        }
                    }
                }
            }
        })?;
        Ok(Self { next, thread: Some(thread), seen: sees, beats })
    }

    /// Everybody, as of the last beat.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Membership> {
        self.seen.clone()
    }

    /// Counts the beats, also those that failed.
    pub fn counter(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let beats = Arc::clone(&self.beats);
        move || beats.load(Ordering::Relaxed)
    }

    /// Something that makes it beat now: a change of the ring is to be seen.
    pub fn nudger(&self) -> impl Fn() + Send + Sync + 'static {
        let next = self.next.clone();
        move || {
            // When this fails it has stopped, and nobody needs it any more.
            let _ = next.send(Next::Beat);
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // When this fails it has stopped by itself.
        let _ = self.next.send(Next::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat panicked");
        }
    }
}

struct Heart {
    pulse: Pulse,
    born: Instant,
    heartbeats: Heartbeats,
    me: ControllerId,
    /// The connection, opened again after a failure.
    conn: Option<Beating>,
    failing: bool,
    /// Time between two beats, and until the next one.
    every: Duration,
    pause: Duration,
}

struct Beating {
    conn: db::Conn,
    locked: bool,
    since: Instant,
}

impl Heart {
    /// One beat. True when this controller's row is gone.
    async fn beat(&mut self, seen: &watch::Sender<Membership>) -> bool {
        let began = Instant::now();
        self.pause = self.every;
        let result = tokio::time::timeout(PATIENCE, self.exchange()).await;
        match result {
            Ok(Ok(Some(membership))) => {
                self.pulse.ring.renew_lease(began);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(controller.id = %self.me, "the heartbeat is back");
                }
                seen.send_if_modified(|before| {
                    let changed = *before != membership;
                    *before = membership;
                    changed
                });
                return false;
            }
            Ok(Ok(None)) => {
                tracing::error!(controller.id = %self.me, "this controller's row is gone: others have taken over; stopping");
                return true;
            }
            Ok(Err(error)) if !self.failing => {
                tracing::warn!(controller.id = %self.me, error = &error as &dyn std::error::Error,
                    "the heartbeat failed; nothing is begun until it is back");
            }
            Err(_) if !self.failing => {
                tracing::warn!(controller.id = %self.me, "the database does not answer the heartbeat; nothing is begun until it does");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        self.failing = true;
        if self.pulse.dialect == Dialect::Sqlite {
            // Alone, a controller has nobody who could take over: a write that cannot be done (a full disk)
            // says so itself.
            self.pulse.ring.renew_lease(began);
        }
        false
    }

    /// Answers whether the database's clock, or this one, was set.
    fn follow_clock(&self, asked: Instant, told_at: Timestamp) -> bool {
        let by_ms = self.pulse.clock.follow(asked, told_at);
        let set = view::is_set(by_ms);
        if set {
            tracing::warn!(by_ms, "this controller's clock was not the database's: it was set");
        }
        set
    }

    /// Touches, looks, buries. `None` when this controller's row is gone.
    async fn exchange(&mut self) -> db::Result<Option<Membership>> {
        let Pulse { url, dialect, joined, .. } = &self.pulse;
        let (dialect, joined) = (*dialect, *joined);
        // Taken out, so a failure or a time-out drops the connection.
        let mut beating = match self.conn.take() {
            Some(beating) => beating,
            None => {
                Beating { conn: db::Conn::connect_writer(url, dialect).await?, locked: false, since: Instant::now() }
            }
        };
        if !beating.locked {
            beating.locked = db::take_heartbeat_lock(&mut beating.conn, dialect, joined).await?;
        }
        if !db::controller::touch(&mut beating.conn, dialect, self.me, joined).await? {
            return Ok(None);
        }
        let asked = Instant::now();
        let (mut membership, told_at) = db::controller::look(&mut beating.conn, dialect).await?;
        if self.follow_clock(asked, told_at) {
            beating.since = Instant::now();
        }
        if view::are_ahead(&membership) {
            db::controller::count_from_now(&mut beating.conn, dialect).await?;
        }
        let now = self.born.elapsed();
        self.heartbeats.note(&membership, now);
        let dead: Vec<_> = self.heartbeats.dead(&membership, beating.since.elapsed(), now).cloned().collect();
        for row in &dead {
            if db::controller::bury(&mut beating.conn, dialect, row).await? {
                tracing::warn!(controller.id = %row.id, controller.address = row.addresses.first(), silent_ms = row.silent_ms,
                    connected = row.connected, "a controller is dead; its share goes to the others");
            }
        }
        if !dead.is_empty() {
            membership = db::controller::all(&mut beating.conn, dialect).await?;
        }
        // Whoever lives on is there by then; of one that does not, nobody waits longer than must be.
        let due = membership.controllers.iter().filter(|row| row.id != self.me).map(ControllerRow::dead_in_ms).min();
        // Of one that is overdue, only the lease is waited for.
        let due = due.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
        self.pause = due.map_or(self.every, |due| due.clamp(LEAST, self.every));
        membership.controllers = membership.controllers.into_iter().map(ControllerRow::at_rest).collect();
        self.conn = Some(beating);
        Ok(Some(membership))
    }
}
