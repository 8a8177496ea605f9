//! Connections. Two libraries run statements: sqlx, which has a server's connections, and for what
//! waits on SQLite in large numbers [`Embedded`], on the thread that asks.

use std::time::Duration;

use sqlx::{AnyConnection, Connection as _};

use super::embedded::Embedded;
use super::pool::Pooled;
use super::{Dialect, Error, Result};

/// A connection of either database.
#[derive(Debug)]
pub enum Conn {
    /// One that goes back into its pool.
    Pooled(Pooled),
    /// One of its own.
    Own(AnyConnection),
    /// SQLite on the thread that asks.
    Embedded(Embedded),
}

/// Who runs a statement.
pub(super) enum Library<'c> {
    Sqlx(&'c mut AnyConnection),
    Embedded(&'c mut Embedded),
}

impl Conn {
    /// A connection of its own to what a URL names.
    pub async fn connect(url: &str) -> Result<Self> {
        sqlx::any::install_default_drivers();
        Ok(Self::Own(AnyConnection::connect(url).await?))
    }

    /// The same, which may write. On SQLite its statements block the thread that runs them.
    pub async fn connect_writer(url: &str, dialect: Dialect) -> Result<Self> {
        Self::connect_own(url, dialect, dialect.writer_settings()).await
    }

    /// One of its own that only reads. On SQLite its statements block the thread that runs them.
    pub(super) async fn connect_reader(url: &str, dialect: Dialect) -> Result<Self> {
        Self::connect_own(url, dialect, dialect.reader_settings()).await
    }

    async fn connect_own(url: &str, dialect: Dialect, settings: Vec<String>) -> Result<Self> {
        let mut conn = match dialect {
            Dialect::Sqlite => Self::Embedded(Embedded::open(url)?),
            Dialect::Postgres => Self::connect(url).await?,
        };
        conn.set(settings).await?;
        Ok(conn)
    }

    pub(super) async fn set(&mut self, settings: Vec<String>) -> Result<()> {
        for setting in settings {
            super::query_of(setting).execute(self).await?;
        }
        Ok(())
    }

    /// Who runs the next statement. How it ended is told by [`Conn::ended`]: until then the connection is in an
    /// unknown state.
    pub(super) fn library(&mut self) -> Library<'_> {
        match self {
            Self::Pooled(known) => {
                known.unknown = true;
                Library::Sqlx(&mut known.conn)
            }
            Self::Own(conn) => Library::Sqlx(conn),
            Self::Embedded(conn) => Library::Embedded(conn),
        }
    }

    /// On SQLite, has statements given up that have not ended after this time, from now on. A server is told by
    /// a setting.
    pub(super) fn give_up_after(&self, limit: Duration) -> Result<()> {
        match self {
            Self::Embedded(conn) => conn.give_up_after(limit),
            Self::Pooled(_) | Self::Own(_) => Ok(()),
        }
    }

    /// The statement has ended, in this way. What the server refuses is an end like any other.
    pub(super) fn ended<T>(&mut self, with: Result<T>) -> Result<T> {
        if let Self::Pooled(known) = self {
            known.unknown = !matches!(&with, Ok(_) | Err(Error::Sql(sqlx::Error::Database(_))));
        }
        with
    }

    /// It is in an unknown state: no pool takes it back.
    pub(super) fn give_up(&mut self) {
        if let Self::Pooled(known) = self {
            known.unknown = true;
        }
    }

    /// Closes it, as far as it is one of its own.
    pub async fn close(self) -> Result<()> {
        if let Self::Own(conn) = self {
            conn.close().await?;
        }
        Ok(())
    }
}
