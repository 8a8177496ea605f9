//! What goes wrong in the database, and what users are told of it.

use std::borrow::Cow;

use shared::Code;

use super::dialect;

/// What goes wrong here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed or refused.
    #[error("the database failed")]
    Sql(#[from] sqlx::Error),
    /// SQLite failed or refused.
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
    /// The schema could not be brought up to date.
    #[error("the database schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A rule of Kring refused it, inside the transaction.
    #[error(transparent)]
    Refused(#[from] shared::Error),
    /// A column holds what this version does not understand.
    #[error("column {column} holds {value:?}, which this version does not understand")]
    Column {
        /// The column.
        column: String,
        /// What it holds.
        value: String,
    },
    /// The disk that SQLite writes to is full. Nothing of the write stays.
    #[error("the disk of the database is full")]
    Full,
    /// There is no connection to write through.
    #[error("the database cannot be reached")]
    Away,
    /// The writer is gone: the process is stopping.
    #[error("the database is closed")]
    Closed,
}

/// `Result` of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What the database calls it: an SQLSTATE or an extended code of SQLite.
    fn code(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Sql(sqlx::Error::Database(error)) => error.code(),
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => Some(error.extended_code.to_string().into()),
            _ => None,
        }
    }

    /// Whether a unique key stood in the way.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        self.code().is_some_and(|code| dialect::is_unique_violation(&code))
    }

    /// Whether a row that others refer to stood in the way.
    #[must_use]
    pub fn is_foreign_key_violation(&self) -> bool {
        self.code().is_some_and(|code| dialect::is_foreign_key_violation(&code))
    }

    /// Whether a statement was given up because it took too long.
    pub(in crate::db) fn took_too_long(&self) -> bool {
        self.code().is_some_and(|code| dialect::took_too_long(&code))
    }

    /// Whether the disk of the database is full.
    pub(in crate::db) fn is_full(&self) -> bool {
        matches!(self, Self::Full) || self.code().is_some_and(|code| dialect::is_full(&code))
    }

    /// Whether the same write may succeed later: the database is away, busy or full.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        if let Some(code) = self.code() {
            return dialect::is_transient(&code);
        }
        match self {
            Self::Sql(error) => !matches!(
                error,
                sqlx::Error::RowNotFound
                    | sqlx::Error::ColumnNotFound(_)
                    | sqlx::Error::ColumnDecode { .. }
                    | sqlx::Error::Decode(_)
                    | sqlx::Error::Encode(_)
                    | sqlx::Error::TypeNotFound { .. }
            ),
            Self::Full | Self::Away => true,
            Self::Closed | Self::Sqlite(_) | Self::Migrate(_) | Self::Refused(_) | Self::Column { .. } => false,
        }
    }
}

impl From<Error> for shared::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refused) => refused,
            full if full.is_full() => Self::new(
                Code::NoSpace,
                "the disk of the controller's database is full, so nothing can be changed: the operator must make room",
            ),
            Error::Away => Self::new(Code::Unavailable, "the database cannot be reached now: try again in a moment"),
            Error::Closed => Self::new(Code::Unavailable, "the controller is stopping: try again on another one"),
            Error::Sql(sqlx::Error::PoolTimedOut) => {
                Self::new(Code::Unavailable, "the database is too busy: try again in a moment")
            }
            passing if passing.is_transient() => {
                Self::new(Code::Unavailable, "the database did not do it this time: try again in a moment")
                    .caused_by(&passing)
            }
            other => Self::internal(&other).caused_by(&other),
        }
    }
}
