//! Writes: one transaction each, and on SQLite many of them in one durable commit.
//!
//! SQLite has one writer. A commit costs a flush of the disk, far more than what most writes do, so
//! whatever waits while a commit runs goes into the next one together. Each write has its own
//! savepoint: one that fails is rolled back alone. Nobody is answered before the commit is durable.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use shared::id::ControllerId;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pool::Pool;
use super::{Conn, Dialect, Error, Result, TouchedHosts, Tx, query};
use crate::thread;

/// Most writes in one commit: bounds how long the first of them waits.
const GROUP: usize = 256;
/// Most writes that wait; more callers wait for their turn to wait.
const QUEUE: usize = 4096;

/// Connections to a server.
const CONNECTIONS: u32 = 16;

/// How long a server may take for one write. Whoever holds a lock is ended by it earlier
/// ([`Dialect::writer_settings`]), so a longer silence is that of a way that is no more.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);

/// Tells the caller how its write ended, once the commit has succeeded (`Ok`) or not.
pub(super) type Answer = Box<dyn FnOnce(Result<()>) + Send>;
/// A write; `Err` answers at once, for its savepoint is rolled back.
pub(super) type Write = Box<dyn for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Written> + Send>;

pub(super) enum Written {
    /// Answer after the commit.
    Keep(Answer),
    /// Roll back; answered already, with this said of the disk.
    Discard {
        /// Whether it failed because the disk is full.
        full: bool,
    },
}

/// What was written since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFigures {
    /// Writes that were committed.
    pub writes: u64,
    /// Commits, each of one write or of several that waited together.
    pub commits: u64,
    /// How long commits took until they were durable.
    pub committing: Duration,
}

/// See [`WriteFigures`].
#[derive(Debug, Default)]
pub(super) struct Counted {
    writes: AtomicU64,
    commits: AtomicU64,
    committing_us: AtomicU64,
}

impl Counted {
    fn add(&self, writes: usize, took: Duration) {
        self.writes.fetch_add(writes as u64, Relaxed);
        self.commits.fetch_add(1, Relaxed);
        self.committing_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn figures(&self) -> WriteFigures {
        WriteFigures {
            writes: self.writes.load(Relaxed),
            commits: self.commits.load(Relaxed),
            committing: Duration::from_micros(self.committing_us.load(Relaxed)),
        }
    }
}

/// Who is told of what was committed here.
#[derive(Clone)]
pub(super) struct Committed {
    /// Counts it.
    pub(super) counted: Arc<Counted>,
    /// Wakes those who wait for events of any controller.
    pub(super) events: Arc<watch::Sender<u64>>,
    /// Wakes those who wait for events of this one.
    pub(super) own_events: Arc<watch::Sender<u64>>,
    /// Hosts whose picture has to be made anew.
    pub(super) touched_hosts: Arc<TouchedHosts>,
    /// Hosts that are reached in another way.
    pub(super) reached_hosts: Arc<TouchedHosts>,
}

impl Committed {
    fn tell(&self, tx: &mut Tx, events: bool) {
        if events {
            for watchers in [&self.events, &self.own_events] {
                watchers.send_modify(|n| *n = n.wrapping_add(1));
            }
        }
        if !tx.touched_hosts.is_empty() {
            self.touched_hosts.add(tx.touched_hosts.drain(..));
        }
        if !tx.reached_hosts.is_empty() {
            self.reached_hosts.add(tx.reached_hosts.drain(..));
        }
    }
}

#[derive(Clone)]
pub(super) enum Writer {
    Grouped { queue: mpsc::Sender<Write>, closing: CancellationToken, closed: CancellationToken },
    Pooled { pool: Pool, dialect: Dialect, committed: Committed, running: TaskTracker, on: Handle, fence: Fence },
}

/// The member that writes, and the generation in which it joined: when it is no member any more, the
/// database refuses what it writes. Nothing is checked while it is not set.
pub(super) type Fence = Arc<OnceLock<(ControllerId, u64)>>;

impl Writer {
    /// On a server it writes until `closing`; what is written to SQLite ends when nobody can ask any more.
    pub(super) async fn start(
        url: &str,
        dialect: Dialect,
        committed: Committed,
        tasks: &TaskTracker,
        closing: CancellationToken,
    ) -> Result<Self> {
        Ok(match dialect {
            Dialect::Sqlite => {
                let (queue, writes) = mpsc::channel(QUEUE);
                let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
                let first = Conn::connect_writer(url, dialect).await?;
                let grouping = Grouping { url: url.to_string(), writes, closing: closing.clone(), committed };
                thread::own("db-writer", grouping.run(first), closed.clone(), tasks).map_err(sqlx::Error::Io)?;
                Self::Grouped { queue, closing, closed }
            }
            Dialect::Postgres => {
                let pool = Pool::new(url, dialect, CONNECTIONS, dialect.writer_settings())?;
                let until = closing.cancelled_owned();
                let on = thread::own("db-writer", until, CancellationToken::new(), tasks).map_err(sqlx::Error::Io)?;
                Self::Pooled { pool, dialect, committed, running: TaskTracker::new(), on, fence: Fence::default() }
            }
        })
    }

    pub(super) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let member = match self {
            // The data folder is locked: nobody else writes to an embedded database.
            Self::Grouped { .. } => None,
            Self::Pooled { fence, .. } => fence.get().copied(),
        };
        let write: Write = Box::new(move |tx| {
            Box::pin(async move {
                let fenced = async {
                    if let Some((id, joined)) = member {
                        super::controller::fence(tx.conn(), id, joined).await?;
                    }
                    work(tx).await
                };
                let result = AssertUnwindSafe(fenced).catch_unwind().await.unwrap_or_else(|_| {
                    Err(Error::Refused(shared::Error::internal("a write to the database panicked")))
                });
                match result {
                    Ok(value) => Written::Keep(Box::new(move |committed| {
                        // Nobody waits any more when this fails.
                        let _ = reply.send(committed.map(|()| value));
                    })),
                    Err(error) => {
                        let full = error.is_full();
                        let _ = reply.send(Err(error));
                        Written::Discard { full }
                    }
                }
            })
        });
        match self {
            Self::Grouped { queue, .. } => queue.send(write).await.map_err(|_| Error::Closed)?,
            // In a task of its own, so a caller who goes away does not leave a transaction open.
            Self::Pooled { pool, dialect, committed, running, on, .. } => {
                let (pool, dialect, committed) = (pool.clone(), *dialect, committed.clone());
                let doing = async move {
                    let mut tx = match pool.get().await {
                        Ok(conn) => Tx::new(conn, dialect),
                        // The reply channel closes with the write: the caller sees `Away`.
                        Err(error) => {
                            let error = &error as &dyn std::error::Error;
                            return tracing::warn!(error, "no database connection for a write");
                        }
                    };
                    let done = tokio::time::timeout(ANSWERS_WITHIN, commit_group(&mut tx, vec![write], &committed));
                    if done.await.is_err() {
                        // It may be committed, or not: the caller sees `Away`, and asks again.
                        tracing::warn!("the database does not answer a write; its connection is given up");
                        committed.tell(&mut tx, true);
                        tx.conn.give_up();
                    }
                };
                running.spawn_on(doing, on);
            }
        }
        answer.await.map_err(|_| Error::Away)?
    }

    /// From now on, writes are refused unless this member still is one.
    pub(super) fn write_as(&self, id: ControllerId, joined: u64) {
        if let Self::Pooled { fence, .. } = self {
            // A second one would be a defect of the start-up; the first one stays.
            let _ = fence.set((id, joined));
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Grouped { closing, closed, .. } => {
                closing.cancel();
                closed.cancelled().await;
            }
            Self::Pooled { pool, running, .. } => {
                pool.close();
                running.close();
                running.wait().await;
            }
        }
    }
}

/// The writer of SQLite.
struct Grouping {
    url: String,
    writes: mpsc::Receiver<Write>,
    closing: CancellationToken,
    committed: Committed,
}

impl Grouping {
    /// Commits what waits until it is closed; what waits then is still done.
    async fn run(mut self, first: Conn) {
        let (mut conn, mut group) = (Some(first), Vec::with_capacity(GROUP));
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled(), if !self.writes.is_closed() => self.writes.close(),
                some = self.writes.recv_many(&mut group, GROUP) => {
                    if some == 0 {
                        break;
                    }
                    let opened = match conn.take() {
                        Some(conn) => Ok(conn),
                        None => Conn::connect_writer(&self.url, Dialect::Sqlite).await,
                    };
                    match opened {
                        Ok(opened) => conn = self.commit(opened, std::mem::take(&mut group)).await,
                        Err(error) => {
                            let (writes, error) = (group.len(), &error as &dyn std::error::Error);
                            tracing::warn!(error, writes, "no database connection for writing");
                            group.clear();
                        }
                    }
                }
            }
        }
    }

    /// Gives the connection back, unless it is in an unknown state.
    async fn commit(&self, conn: Conn, group: Vec<Write>) -> Option<Conn> {
        let mut tx = Tx::new(conn, Dialect::Sqlite);
        commit_group(&mut tx, group, &self.committed).await.then_some(tx.conn)
    }
}

/// Runs `group` in one transaction and answers everybody after the commit. False when the connection is not to be
/// used again.
async fn commit_group(tx: &mut Tx, group: Vec<Write>, committed: &Committed) -> bool {
    let mut answers = Vec::with_capacity(group.len());
    match apply_group(tx, group, &mut answers, &committed.counted).await {
        Ok(events) => {
            committed.tell(tx, events);
            answers.into_iter().for_each(|answer| answer(Ok(())));
            true
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, writes = answers.len(), "a commit failed");
            let (full, text) = (error.is_full(), error.to_string());
            let known = exec(tx.conn(), "ROLLBACK").await.is_ok();
            if !known {
                tx.conn.give_up();
            }
            // The commit may have been done, and only its answer lost: whoever is told looks for himself.
            committed.tell(tx, true);
            for answer in answers {
                answer(Err(if full { Error::Full } else { Error::Sql(sqlx::Error::Protocol(text.clone())) }));
            }
            known
        }
    }
}

/// Answers whether events were appended. One write alone needs no savepoint.
async fn apply_group(tx: &mut Tx, group: Vec<Write>, answers: &mut Vec<Answer>, counted: &Counted) -> Result<bool> {
    let begin = tx.dialect.begin();
    exec(tx.conn(), begin).await?;
    let alone = group.len() == 1;
    for (n, write) in group.into_iter().enumerate() {
        match n {
            0 if alone => {}
            0 => exec(tx.conn(), "SAVEPOINT w").await?,
            _ => {
                exec(tx.conn(), "RELEASE SAVEPOINT w").await?;
                exec(tx.conn(), "SAVEPOINT w").await?;
            }
        }
        let events = tx.events.len();
        match write(tx).await {
            Written::Keep(answer) => answers.push(answer),
            Written::Discard { full } => {
                tx.events.truncate(events);
                let back = if alone { "ROLLBACK" } else { "ROLLBACK TO SAVEPOINT w" };
                // On a full disk SQLite may have rolled back everything, with the savepoint.
                exec(tx.conn(), back).await.map_err(|error| if full { Error::Full } else { error })?;
                if alone {
                    return Ok(false);
                }
            }
        }
    }
    let events = !tx.events.is_empty();
    super::event::write(&mut tx.conn, tx.dialect, &mut tx.events).await?;
    let begin = Instant::now();
    exec(tx.conn(), "COMMIT").await?;
    counted.add(answers.len(), begin.elapsed());
    Ok(events)
}

async fn exec(conn: &mut Conn, sql: &'static str) -> Result<()> {
    query(sql).execute(conn).await.map(drop)
}
