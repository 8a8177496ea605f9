//! Statements with their parameters, and what comes back, whichever library runs them.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::{Any, AssertSqlSafe};

use super::conn::{Conn, Library};
use super::{Error, Result};

/// One statement. Its parameters are `$1`, `$2` and so on.
#[derive(Clone, Debug)]
pub struct Query {
    pub(super) text: Cow<'static, str>,
    pub(super) values: Vec<Value>,
}

/// A parameter, or what a column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text column's NULL, or that of a column whose type is not known.
    NoText,
    /// A number column's NULL.
    NoInt,
    /// A text.
    Text(String),
    /// A number.
    Int(i64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        text.map_or(Self::NoText, Self::Text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::NoInt, Self::Int)
    }
}

/// One row of an answer. How its columns are read: [`super::row`].
pub enum Row {
    /// As sqlx gives it.
    Sqlx(AnyRow),
    /// As it was taken from SQLite on the thread that asked.
    Embedded {
        /// Names of the columns, shared by all rows of an answer.
        names: Arc<[String]>,
        /// What they hold.
        values: Vec<Value>,
    },
}

/// A statement of this program's text.
#[must_use]
pub fn query(text: &'static str) -> Query {
    Query { text: Cow::Borrowed(text), values: Vec::new() }
}

/// A statement whose text was put together of pieces of this program and `$n`; what callers wrote is bound.
#[must_use]
pub fn query_of(text: String) -> Query {
    Query { text: Cow::Owned(text), values: Vec::new() }
}

impl Query {
    /// The next parameter.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it; answers how many rows it changed.
    pub async fn execute(self, conn: &mut Conn) -> Result<u64> {
        let changed = match conn.library() {
            Library::Embedded(sqlite) => sqlite.execute(&self),
            Library::Sqlx(conn) => {
                self.for_sqlx().execute(conn).await.map(|done| done.rows_affected()).map_err(Error::from)
            }
        };
        conn.ended(changed)
    }

    /// All rows.
    pub async fn fetch_all(self, conn: &mut Conn) -> Result<Vec<Row>> {
        let rows = match conn.library() {
            Library::Embedded(sqlite) => {
                let mut rows = Vec::new();
                let read = sqlite.each(&self, |row| {
                    rows.push(row);
                    Ok(true)
                });
                read.map(|()| rows)
            }
            Library::Sqlx(conn) => {
                let rows = self.for_sqlx().fetch_all(conn).await;
                rows.map(|rows| rows.into_iter().map(Row::Sqlx).collect()).map_err(Error::from)
            }
        };
        conn.ended(rows)
    }

    /// The first row, if there is one.
    pub async fn fetch_optional(self, conn: &mut Conn) -> Result<Option<Row>> {
        let first = match conn.library() {
            Library::Embedded(sqlite) => {
                let mut first = None;
                let read = sqlite.each(&self, |row| {
                    first = Some(row);
                    Ok(false)
                });
                read.map(|()| first)
            }
            Library::Sqlx(conn) => {
                self.for_sqlx().fetch_optional(conn).await.map(|row| row.map(Row::Sqlx)).map_err(Error::from)
            }
        };
        conn.ended(first)
    }

    /// The one row that there always is.
    pub async fn fetch_one(self, conn: &mut Conn) -> Result<Row> {
        self.fetch_optional(conn).await?.ok_or(Error::Sql(sqlx::Error::RowNotFound))
    }

    /// Gives each row to `visit` and holds no more than one.
    pub async fn each(self, conn: &mut Conn, mut visit: impl FnMut(Row) -> Result<()>) -> Result<()> {
        let read = match conn.library() {
            Library::Embedded(sqlite) => sqlite.each(&self, |row| visit(row).map(|()| true)),
            Library::Sqlx(conn) => {
                let rows = self.for_sqlx().fetch(conn).map_err(Error::from);
                rows.try_for_each(|row| std::future::ready(visit(Row::Sqlx(row)))).await
            }
        };
        conn.ended(read)
    }

    fn for_sqlx(self) -> sqlx::query::Query<'static, Any, AnyArguments> {
        let query = match self.text {
            Cow::Borrowed(text) => sqlx::query(text),
            Cow::Owned(text) => sqlx::query(AssertSqlSafe(text)),
        };
        self.values.into_iter().fold(query, |query, value| match value {
            Value::NoText => query.bind(None::<String>),
            Value::NoInt => query.bind(None::<i64>),
            Value::Text(text) => query.bind(text),
            Value::Int(number) => query.bind(number),
        })
    }
}
