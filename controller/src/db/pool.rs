//! Pools of connections. A way to a database server may cease to be one in silence (a firewall forgets it, a
//! machine is gone): whoever writes into such a connection hears nothing for many minutes. So nobody waits
//! for a connection without a limit, one that was not used for a moment is asked whether it is well, and one whose
//! last statement has no end is closed. One that was used just now is used again as it is: to ask it
//! costs as much as most statements.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::{AnyConnection, AssertSqlSafe, Connection};

use super::{Conn, Dialect, Error, Result};

/// How long a connection may take to answer a ping, and how long a caller waits for one that does.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(10);
/// The same with SQLite, where one is free as soon as another read has ended.
const PATIENCE_WITH_A_FILE: Duration = Duration::from_secs(30);
/// A connection that was in use so shortly ago is used again without being asked whether it is well.
const FRESH: Duration = Duration::from_secs(1);
/// Then it is closed: a server keeps more and more for a connection.
const OLD: Duration = Duration::from_secs(1800);

/// A connection that goes back into its pool, unless it is in an unknown state: then it is closed.
#[derive(Debug)]
pub struct Pooled(Option<Object<Opener>>);

#[expect(clippy::expect_used, reason = "it is there until this is dropped")]
impl Deref for Pooled {
    type Target = Known;
    fn deref(&self) -> &Known {
        self.0.as_ref().expect("a connection is there until it is dropped")
    }
}

#[expect(clippy::expect_used, reason = "it is there until this is dropped")]
impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Known {
        self.0.as_mut().expect("a connection is there until it is dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take()
            && conn.unknown
        {
            // Out of the pool: a server's process at its other end may hold locks, or send into nothing.
            drop(Object::take(conn));
        }
    }
}

/// Connections of one kind, opened when they are needed. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    conns: managed::Pool<Opener>,
    patience: Duration,
}

impl Pool {
    /// At most so many, which begin with these statements.
    pub(super) fn new(url: &str, dialect: Dialect, most: u32, settings: Vec<String>) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let opener = Opener { url: url.to_string(), dialect, settings };
        // Those that were used last, so that few are at work when there is little to do.
        let builder = managed::Pool::builder(opener).max_size(most as usize).queue_mode(QueueMode::Lifo);
        let conns = builder.build().map_err(|error| sqlx::Error::Configuration(error.into()))?;
        let patience = match dialect {
            Dialect::Sqlite => PATIENCE_WITH_A_FILE,
            Dialect::Postgres => PATIENCE,
        };
        Ok(Self { conns, patience })
    }

    /// A connection, when one is free.
    pub(super) async fn get(&self) -> Result<Conn> {
        match tokio::time::timeout(self.patience, self.conns.get()).await {
            Ok(Ok(conn)) => Ok(Conn::Pooled(Pooled(Some(conn)))),
            Ok(Err(PoolError::Backend(error))) => Err(error),
            Ok(Err(PoolError::Closed)) => Err(Error::Closed),
            Ok(Err(_)) | Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    /// Closes those that nobody uses, and the others when they come back.
    pub(super) fn close(&self) {
        self.conns.close();
    }
}

/// One of a pool's connections.
#[derive(Debug)]
pub struct Known {
    pub(super) conn: AnyConnection,
    /// A statement was begun whose end nobody has seen, or a transaction was given up.
    pub(super) unknown: bool,
}

/// Opens connections, and tells which are used again.
#[derive(Debug)]
pub struct Opener {
    url: String,
    dialect: Dialect,
    settings: Vec<String>,
}

impl managed::Manager for Opener {
    type Type = Known;
    type Error = Error;

    async fn create(&self) -> Result<Known> {
        let mut conn = AnyConnection::connect(&self.url).await?;
        for setting in &self.settings {
            // A text of this program.
            sqlx::query(AssertSqlSafe(setting.clone())).execute(&mut conn).await?;
        }
        Ok(Known { conn, unknown: false })
    }

    async fn recycle(&self, known: &mut Known, metrics: &Metrics) -> RecycleResult<Error> {
        // A way to a file does not cease.
        let server = self.dialect == Dialect::Postgres;
        if server && metrics.age() > OLD {
            return Err(RecycleError::message("it is not used again"));
        }
        if server && metrics.last_used() > FRESH && !answers(&mut known.conn).await {
            return Err(RecycleError::message("it does not answer"));
        }
        Ok(())
    }
}

async fn answers(conn: &mut AnyConnection) -> bool {
    matches!(tokio::time::timeout(ANSWERS_WITHIN, conn.ping()).await, Ok(Ok(())))
}
