//! The database: SQLite by default, PostgreSQL for many controllers, the same SQL text on both.
//!
//! SQL is written only in this folder, one file per noun. All of it uses TEXT and BIGINT columns and
//! `$n` parameters, which both databases understand; the few differences live in [`dialect`]. A statement is a
//! [`Query`], and its answer [`Row`]s; which library runs it, the connection ([`Conn`]) knows.
//!
//! - [`Db::read`]: a connection that cannot write.
//! - [`Db::vms`], [`Db::owners`] and the like: point reads of which there are many at once, read together.
//! - [`Db::write`]: one transaction. On SQLite all writes that wait are grouped into one durable
//!   commit; a failed one is rolled back alone, by its savepoint.
//!
//! No transaction stays open across I/O: a write closure gets the transaction and nothing else that
//! could wait.

pub mod account;
pub mod authority;
pub mod backup;
pub mod cleanup;
pub mod cluster;
mod conn;
pub mod controller;
pub mod counter;
pub mod dialect;
mod embedded;
mod error;
pub mod event;
pub mod filter;
mod gather;
pub mod host;
pub mod idempotency;
pub mod image;
pub mod instance_type;
pub mod job;
pub mod join_token;
mod long;
pub mod network;
pub mod nic;
mod owner;
pub mod page;
pub mod placement;
mod pool;
pub mod probe;
mod query;
pub mod row;
pub mod setting;
pub mod storage;
#[cfg(test)]
pub mod testing;
pub mod token;
mod touched;
pub mod vm;
pub mod volume;
mod writer;
pub mod zone;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use shared::api::image::Image;
use shared::api::network::Network;
use shared::api::page::ListParams;
use shared::api::storage::Storage;
use shared::api::vm::Vm;
use shared::id::{AccountId, ControllerId, HostId, ImageId, JobId, NetworkId, StorageId, VmId};
use shared::time::Timestamp;
use sqlx::migrate::Migrator;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use conn::Conn;
use conn::Library;
pub use dialect::Dialect;
pub use error::{Error, Result};
pub use gather::Gathered;
use long::Long;
use page::{ListSpec, Rows};
use pool::Pool;
pub use query::{Query, Row, query, query_of};
pub use touched::TouchedHosts;
pub use writer::WriteFigures;
use writer::{Committed, Counted, Writer};

use crate::thread;

/// One transaction.
pub struct Tx {
    conn: Conn,
    dialect: Dialect,
    events: Vec<event::Appended>,
    touched_hosts: Vec<HostId>,
    reached_hosts: Vec<HostId>,
}

impl Tx {
    const fn new(conn: Conn, dialect: Dialect) -> Self {
        Self { conn, dialect, events: Vec::new(), touched_hosts: Vec::new(), reached_hosts: Vec::new() }
    }

    /// The connection, for the repository files.
    pub fn conn(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// Which database this is.
    pub(in crate::db) const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Remembers that the picture of a host must be made anew after the commit.
    pub(in crate::db) fn touch_host(&mut self, id: HostId) {
        self.touched_hosts.push(id);
    }

    /// The same, for a host that came or went, or that is reached in another way than before.
    pub(in crate::db) fn touch_reach(&mut self, id: HostId) {
        self.touch_host(id);
        self.reached_hosts.push(id);
    }
}

/// The database. Cloning shares it.
#[derive(Clone)]
pub struct Db {
    /// VMs as users see them, without links.
    pub vms: Gathered<VmId, Vm>,
    /// VMs as their hosts need to know them.
    pub whole_vms: Gathered<VmId, vm::Whole>,
    /// VMs, and whether jobs are at work on them.
    pub watched_vms: Gathered<VmId, vm::Watched>,
    /// Images.
    pub images: Gathered<ImageId, Image>,
    /// Networks.
    pub networks: Gathered<NetworkId, Network>,
    /// Storages, without what each host has of them.
    pub storages: Gathered<StorageId, Storage>,
    /// How hosts are reached.
    pub reaches: Gathered<HostId, host::Reach>,
    /// Jobs.
    pub jobs: Gathered<JobId, job::JobRow>,
    /// Whose a resource is, by noun and id. Infrastructure belongs to nobody.
    pub owners: Gathered<(&'static str, Uuid), AccountId>,
    dialect: Dialect,
    readers: Pool,
    lists: Long,
    slow_lists: Long,
    many: Long,
    writer: Writer,
    events: Arc<watch::Sender<u64>>,
    own_events: Arc<watch::Sender<u64>>,
    touched_hosts: Arc<TouchedHosts>,
    reached_hosts: Arc<TouchedHosts>,
    counted: Arc<Counted>,
    /// Ends the thread of the reads that are done together, and a server's of writes.
    closing: CancellationToken,
    _closes: Arc<DropGuard>,
    /// What hosts should answer to a ping when all is as it is written here.
    pub digests: Gathered<HostId, u64>,
}

/// Starts reads of one kind after the other.
struct Points<'a> {
    source: gather::Source,
    together: usize,
    on: Handle,
    tasks: &'a TaskTracker,
}

impl Points<'_> {
    fn of<K, V>(&self, read: gather::Read<K, V>) -> Gathered<K, V>
    where
        K: Copy + Eq + std::hash::Hash + Send + Sync + 'static,
        V: Clone + Send + 'static,
    {
        Gathered::start(self.source.clone(), self.together, read, (self.tasks, &self.on))
    }
}

/// Names the shape of a write closure, which the compiler does not find by itself when the closure is
/// made in one place and run in another.
pub fn work<T, F>(work: F) -> F
where
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T>> + Send + 'static,
{
    work
}

/// How long a server may take to answer what is read in the middle of a job, or while others wait.
const SOON: Duration = Duration::from_secs(20);

/// Reads what has to be there soon: the way to a database may be no more without anybody being told, and
/// then nothing ever answers.
///
/// # Errors
/// Those of reading, and [`Error::Away`].
pub async fn soon<T, E: From<Error>>(reading: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::time::timeout(SOON, reading).await.unwrap_or_else(|_| Err(Error::Away.into()))
}

/// Takes the lock that tells the others that the heartbeat of the controller that joined in `joined` is
/// connected. False when an older connection still has it.
pub async fn take_heartbeat_lock(conn: &mut Conn, dialect: Dialect, joined: u64) -> Result<bool> {
    dialect.take_lock(conn, joined).await
}

/// What makes the schema of this release. A controller of the version before may start beside those that have
/// brought it further: what they added is not its business.
fn migrations(dialect: Dialect) -> Migrator {
    let of_both = sqlx::migrate!("./migrations");
    let all = of_both.iter().chain(dialect.migrations().iter()).cloned().collect();
    let mut migrations = Migrator::with_migrations(all);
    migrations.set_ignore_missing(true);
    migrations
}

/// Brings the schema up to date, and makes the file when there is none.
async fn migrate(url: &str, dialect: Dialect) -> Result<()> {
    let mut conn = Conn::connect(&dialect.create_url(url)).await?;
    conn.set(dialect.writer_settings()).await?;
    if let Library::Sqlx(conn) = conn.library() {
        migrations(dialect).run(conn).await?;
    }
    let sql = "SELECT CAST(MAX(version) AS BIGINT) AS version FROM _sqlx_migrations";
    let there = query(sql).fetch_one(&mut conn).await?.int("version")?;
    conn.close().await?;
    let known = probe::newest(dialect);
    if there > known {
        tracing::warn!(
            schema.version = there,
            schema.known = known,
            "a newer version has changed the database's schema; this works for one version back and no further"
        );
    }
    Ok(())
}

/// Connections that read; SQLite serves them from memory, so more would only fight for two cores.
const READERS: u32 = 7;
/// Connections that lists are read with, none of which takes long there.
const LISTERS: u32 = 3;
/// Those of lists that did: one that reads a million rows is waited for by nobody but others like it.
const SLOW_LISTERS: u32 = 2;
/// How long a list may take before it goes on among those.
const QUICK: Duration = Duration::from_millis(100);
/// Connections that read many rows, such as those of all hosts.
const READERS_OF_MANY: u32 = 2;

impl Db {
    /// Opens the database at `url` (`sqlite:/path/file.db` or `postgres://…`), makes it when it is a
    /// SQLite file that is missing, and brings its schema up to date.
    pub async fn open(url: &str, tasks: &TaskTracker) -> Result<Self> {
        let dialect = Dialect::of(url)?;
        migrate(url, dialect).await?;
        let readers = Pool::new(url, dialect, READERS, dialect.reader_settings())?;
        let lists = Long::new(url, dialect, LISTERS, QUICK, tasks)?;
        let slow_lists = Long::new(url, dialect, SLOW_LISTERS, page::LONGEST, tasks)?;
        let many = Long::new(url, dialect, READERS_OF_MANY, SOON, tasks)?;
        let (closing, together) = (CancellationToken::new(), dialect.gathered_reads());
        // They are short, and many.
        let until = closing.clone().cancelled_owned();
        let on = thread::own("db-reader", until, CancellationToken::new(), tasks).map_err(sqlx::Error::Io)?;
        let source = match dialect {
            Dialect::Sqlite => gather::Source::One(Arc::new(Mutex::new(Conn::connect_reader(url, dialect).await?))),
            Dialect::Postgres => gather::Source::Pool(Pool::new(url, dialect, READERS, dialect.reader_settings())?),
        };
        let points = Points { source, together, on, tasks };
        // A host may have thousands of VMs.
        let source = gather::Source::Long(many.clone());
        let long = Points { source, together, on: Handle::current(), tasks };
        let events = Arc::new(watch::Sender::new(0));
        let own_events = Arc::new(watch::Sender::new(0));
        let (touched_hosts, reached_hosts) = <(Arc<TouchedHosts>, Arc<TouchedHosts>)>::default();
        let counted = Arc::new(Counted::default());
        let committed = Committed {
            counted: Arc::clone(&counted),
            events: Arc::clone(&events),
            own_events: Arc::clone(&own_events),
            touched_hosts: Arc::clone(&touched_hosts),
            reached_hosts: Arc::clone(&reached_hosts),
        };
        let writer = Writer::start(url, dialect, committed, tasks, closing.clone()).await?;
        Ok(Self {
            vms: points.of(|conn, ids| vm::views(conn, ids).boxed()),
            whole_vms: points.of(|conn, ids| vm::wholes(conn, ids).boxed()),
            watched_vms: points.of(|conn, ids| vm::watched(conn, ids).boxed()),
            images: points.of(|conn, ids| image::some(conn, ids).boxed()),
            networks: points.of(|conn, ids| network::some(conn, ids).boxed()),
            storages: points.of(|conn, ids| storage::some(conn, ids).boxed()),
            reaches: points.of(|conn, ids| host::reaches(conn, ids).boxed()),
            jobs: points.of(|conn, ids| job::some(conn, ids).boxed()),
            owners: points.of(|conn, of| owner::of(conn, of).boxed()),
            digests: long.of(|conn, of| vm::digests(conn, of).boxed()),
            dialect,
            readers,
            lists,
            slow_lists,
            many,
            writer,
            events,
            own_events,
            touched_hosts,
            reached_hosts,
            counted,
            _closes: Arc::new(closing.clone().drop_guard()),
            closing,
        })
    }

    /// The URL of the SQLite file in a data folder.
    #[must_use]
    pub fn sqlite_url(data_dir: &Path) -> String {
        format!("sqlite:{}", data_dir.join("kring.db").display())
    }

    /// A connection that cannot write.
    pub async fn read(&self) -> Result<Conn> {
        self.readers.get().await
    }

    /// One page of a list. `scope` is the account whose resources are seen; `None`: all.
    ///
    /// # Errors
    /// Those of [`page::list`].
    pub async fn page(&self, spec: &'static ListSpec, params: ListParams, scope: Option<AccountId>) -> Result<Rows> {
        self.list(move |conn| {
            let params = params.clone();
            Box::pin(async move { page::list(conn, spec, &params, scope).await })
        })
        .await
    }

    /// Reads what belongs to a list. What turns out to take long begins anew where only such reads are, and there
    /// may be no room for it in time.
    ///
    /// # Errors
    /// `deadline_exceeded` for what takes too long; failures of the database.
    pub async fn list<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Clone + Send + 'static,
    {
        page::in_time(async {
            match self.lists.read(read.clone()).await {
                Err(error) if error.took_too_long() => self.slow_lists.read(read).await,
                read => read,
            }
        })
        .await
    }

    /// Reads many rows, such as those of all hosts.
    pub async fn read_many<T, F>(&self, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.many.read(read).await
    }

    /// Runs `work` in one transaction and answers when it is durable. When `work` fails, nothing of
    /// it stays. It must wait for nothing but the transaction.
    pub async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T>> + Send + 'static,
    {
        self.writer.write(work).await
    }

    /// Has the database look how often values occur, by which it chooses among its indexes. PostgreSQL does it
    /// by itself.
    pub async fn refresh_statistics(&self) -> Result<()> {
        let Some(statements) = self.dialect.refresh_statistics() else { return Ok(()) };
        self.write(move |tx| {
            Box::pin(async move {
                for sql in statements {
                    query(sql).execute(tx.conn()).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// From now on every write is refused unless the controller `id` is still the member that joined in
    /// the generation `joined`.
    pub fn write_as(&self, id: ControllerId, joined: u64) {
        self.writer.write_as(id, joined);
    }

    /// Wakes whenever events were appended.
    #[must_use]
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.events.subscribe()
    }

    /// Wakes whenever events were appended by this controller.
    #[must_use]
    pub fn watch_own_events(&self) -> watch::Receiver<u64> {
        self.own_events.subscribe()
    }

    /// The hosts that were written to by this controller.
    #[must_use]
    pub const fn touched_hosts(&self) -> &Arc<TouchedHosts> {
        &self.touched_hosts
    }

    /// Hosts that came or went, or that are reached in another way, by what was committed here.
    #[must_use]
    pub const fn reached_hosts(&self) -> &Arc<TouchedHosts> {
        &self.reached_hosts
    }

    /// Wakes the watchers of events: another controller appended some.
    pub fn wake_event_watchers(&self) {
        self.events.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// What was written since the start, for metrics.
    #[must_use]
    pub fn write_figures(&self) -> WriteFigures {
        self.counted.figures()
    }

    /// Which database this is.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// What the database's clock says.
    pub async fn told_at(&self) -> Result<Timestamp> {
        let sql = format!("SELECT {} AS told_at", self.dialect.now_ms());
        query_of(sql).fetch_one(&mut self.read().await?).await?.time("told_at")
    }

    /// Waits for running writes and closes all connections.
    pub async fn close(&self) {
        self.writer.close().await;
        self.closing.cancel();
        self.readers.close();
        self.lists.close();
        self.slow_lists.close();
        self.many.close();
    }
}

#[cfg(test)]
mod tests;
