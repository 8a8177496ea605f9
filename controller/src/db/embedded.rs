//! SQLite on the thread that asks.
//!
//! sqlx gives each connection of SQLite a thread and hands every statement to it and back. A write of Kring
//! is a dozen statements of some microseconds each, so most of its time would be spent in switches between
//! threads; so it is with the reads that are done together. Both have threads of their own ([`super::thread`]) and
//! nothing else to do there: their statements run on them.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::types::{ToSqlOutput, Value as Owned, ValueRef};
use rusqlite::{CachedStatement, Connection, OpenFlags, ToSql};
use sqlx::sqlite::SqliteConnectOptions;

use super::Result;
use super::query::{Query, Row, Value};

/// Instructions of SQLite between two looks at the time: some tenths of a millisecond.
const LOOK: i32 = 10_000;

/// Statements that stay prepared.
const PREPARED: usize = 256;

/// A connection to a file of SQLite.
#[derive(Debug)]
pub struct Embedded {
    conn: Connection,
}

impl Embedded {
    /// Opens the file that a URL names.
    pub(super) fn open(url: &str) -> Result<Self> {
        let options = SqliteConnectOptions::from_str(url)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(options.get_filename(), flags)?;
        conn.set_prepared_statement_cache_capacity(PREPARED);
        Ok(Self { conn })
    }

    /// Has statements given up that have not ended after this time, from now on.
    pub(super) fn give_up_after(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        Ok(self.conn.progress_handler(LOOK, Some(move || Instant::now() > end))?)
    }

    /// Runs a statement; answers how many rows it changed.
    pub(super) fn execute(&mut self, query: &Query) -> Result<u64> {
        self.each(query, |_| Ok(true))?;
        Ok(self.conn.changes())
    }

    /// Gives the rows of a statement to `visit` as long as it answers true.
    pub(super) fn each(&mut self, query: &Query, mut visit: impl FnMut(Row) -> Result<bool>) -> Result<()> {
        let mut statement = self.conn.prepare_cached(&query.text)?;
        bind(&mut statement, &query.values)?;
        let columns = statement.column_count();
        let mut names: Option<Arc<[String]>> = None;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let names =
                names.get_or_insert_with(|| row.as_ref().column_names().iter().map(ToString::to_string).collect());
            let values = (0..columns).map(|n| value(row.get_ref(n)?)).collect::<Result<_>>()?;
            if !visit(Row::Embedded { names: Arc::clone(names), values })? {
                break;
            }
        }
        Ok(())
    }
}

/// SQLite numbers `$n` in the order in which they appear.
fn bind(statement: &mut CachedStatement<'_>, values: &[Value]) -> Result<()> {
    for at in 1..=statement.parameter_count() {
        let number = statement.parameter_name(at).and_then(|name| name.strip_prefix('$')?.parse::<usize>().ok());
        let value = number.and_then(|number| values.get(number.checked_sub(1)?));
        // A parameter that is missing is a defect of this program, and no NULL.
        let value = value.ok_or(rusqlite::Error::InvalidParameterCount(values.len(), at))?;
        statement.raw_bind_parameter(at, value)?;
    }
    Ok(())
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::NoText | Self::NoInt => ToSqlOutput::Owned(Owned::Null),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Self::Int(number) => ToSqlOutput::Owned(Owned::Integer(*number)),
        })
    }
}

fn value(found: ValueRef<'_>) -> Result<Value> {
    Ok(match found {
        ValueRef::Null => Value::NoText,
        ValueRef::Integer(number) => Value::Int(number),
        // Fractions, bytes and text that is none are in no column.
        ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => {
            Value::Text(found.as_str().map_err(rusqlite::Error::from)?.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::db::{Conn, Dialect, query};

    async fn conn() -> (tempfile::TempDir, Conn) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b%20c.db");
        std::fs::write(&file, b"").unwrap();
        let url = format!("sqlite:{}", file.display().to_string().replace('%', "%25"));
        let mut conn = Conn::connect_writer(&url, Dialect::Sqlite).await.unwrap();
        query("CREATE TABLE t (id TEXT PRIMARY KEY, n BIGINT)").execute(&mut conn).await.unwrap();
        (dir, conn)
    }

    #[tokio::test]
    async fn parameters_go_by_their_numbers_and_columns_by_their_names() {
        let (_dir, mut conn) = conn().await;
        let insert = query("INSERT INTO t (n, id) VALUES ($2, $1), (NULL, $1 || 'b')");
        assert_eq!(insert.bind("a").bind(7_i64).execute(&mut conn).await.unwrap(), 2);
        let rows = query("SELECT n, id FROM t WHERE $2 = 1 AND id >= $1 ORDER BY id").bind("a").bind(1_i64);
        let rows = rows.fetch_all(&mut conn).await.unwrap();
        let read: Vec<_> = rows.iter().map(|row| (row.text("id").unwrap(), row.opt_int("n").unwrap())).collect();
        assert_eq!(read, [("a".to_string(), Some(7)), ("ab".to_string(), None)]);
        assert!(rows[1].int("n").is_err() && rows[0].text("n").is_err() && rows[0].int("none").is_err());
        let first = query("SELECT id FROM t ORDER BY id DESC").fetch_optional(&mut conn).await.unwrap().unwrap();
        assert_eq!(first.text("id").unwrap(), "ab");
        let none = query("SELECT id FROM t WHERE id = $1").bind("x");
        assert!(none.clone().fetch_optional(&mut conn).await.unwrap().is_none());
        assert!(none.fetch_one(&mut conn).await.is_err());
        assert!(query("SELECT 0.5 AS half").fetch_one(&mut conn).await.is_err(), "there are no fractions");
    }

    #[tokio::test]
    async fn what_the_database_refuses_is_known_by_its_code() {
        let (_dir, mut conn) = conn().await;
        let insert = || query("INSERT INTO t (id) VALUES ($1)").bind("a");
        insert().execute(&mut conn).await.unwrap();
        let twice = insert().execute(&mut conn).await.unwrap_err();
        assert!(twice.is_unique_violation() && !twice.is_foreign_key_violation() && !twice.is_transient());
        // A parameter that nobody gave is no NULL, and a defect of the program.
        let missing = query("INSERT INTO t (id, n) VALUES ($1, $2)").bind("b").execute(&mut conn).await.unwrap_err();
        assert!(!missing.is_transient());
        assert_eq!(query("SELECT id FROM t").fetch_all(&mut conn).await.unwrap().len(), 1);
    }
}
