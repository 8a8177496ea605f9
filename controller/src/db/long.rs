//! Reads that may take long: lists, and what is on a host. They have connections of their own, so that others do
//! not wait for them, and on SQLite threads that may block, which are there only while something is read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::pool::Pool;
use super::{Conn, Dialect, Error, Result};

/// Connections for reads of one kind. Cloning shares them.
#[derive(Clone)]
pub(super) enum Long {
    /// Of a server.
    Pool(Pool),
    /// Of SQLite.
    Lent(Arc<Lent>),
}

/// Connections of SQLite that are lent to one read after the other.
pub(super) struct Lent {
    url: String,
    limit: Duration,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Conn>>,
    tasks: TaskTracker,
}

impl Long {
    /// At most so many connections, which are opened when they are needed. A statement that takes longer than
    /// `limit` is given up.
    pub(super) fn new(url: &str, dialect: Dialect, most: u32, limit: Duration, tasks: &TaskTracker) -> Result<Self> {
        Ok(match dialect {
            Dialect::Postgres => Self::Pool(Pool::new(url, dialect, most, dialect.long_reader_settings(limit))?),
            Dialect::Sqlite => Self::Lent(Arc::new(Lent {
                url: url.to_string(),
                limit,
                places: Arc::new(Semaphore::new(most as usize)),
                idle: Mutex::default(),
                tasks: tasks.clone(),
            })),
        })
    }

    /// Reads with one of the connections, when one is free.
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let lent = match self {
            Self::Pool(pool) => return work(&mut pool.get().await?).await,
            Self::Lent(lent) => Arc::clone(lent),
        };
        let place = Arc::clone(&lent.places).acquire_owned().await.map_err(|_| Error::Closed)?;
        let tasks = lent.tasks.clone();
        let reading = tasks.spawn_blocking(move || {
            let _place = place;
            Handle::current().block_on(async {
                let idle = lent.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let mut conn = match idle {
                    Some(conn) => conn,
                    None => Conn::connect_reader(&lent.url, Dialect::Sqlite).await?,
                };
                conn.give_up_after(lent.limit)?;
                let read = work(&mut conn).await;
                if !lent.places.is_closed() {
                    lent.idle.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
                }
                read
            })
        });
        reading.await.unwrap_or_else(|lost| match lost.is_panic() {
            true => Err(Error::Refused(shared::Error::internal("a read of the database panicked"))),
            false => Err(Error::Closed),
        })
    }

    /// Closes the connections; what is being read is still read to its end.
    pub(super) fn close(&self) {
        match self {
            Self::Pool(pool) => pool.close(),
            Self::Lent(lent) => {
                lent.places.close();
                lent.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::query;
    use crate::db::testing::{ENDLESS, dbs};

    #[tokio::test]
    async fn a_read_that_takes_too_long_is_given_up_and_its_connection_reads_on() {
        for db in dbs().await {
            let tasks = TaskTracker::new();
            let long = Long::new(&db.url, db.dialect(), 1, Duration::from_millis(50), &tasks).unwrap();
            let error = long.read(|conn| Box::pin(async move { query(ENDLESS).fetch_one(conn).await })).await;
            let error = error.err().expect("it is given up");
            assert!(error.took_too_long(), "{error:?}");
            let one = long.read(|conn| Box::pin(async move { query("SELECT 1 AS n").fetch_one(conn).await })).await;
            assert_eq!(one.unwrap().int("n").unwrap(), 1);
            long.close();
            let closed = long.read(|conn| Box::pin(async move { query("SELECT 1 AS n").fetch_one(conn).await })).await;
            assert!(closed.is_err());
        }
    }
}
