//! SQLite on the thread that asks.
//!
//! sqlx gives each connection of SQLite a thread and hands every statement to it and back. A write of Kring
//! is a dozen statements of some microseconds each, so most of its time would be spent in switches between
//! threads. The writer has a thread of its own and nothing else to do: its statements run there.

use std::str::FromStr;
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, Value as Owned, ValueRef};
use rusqlite::{CachedStatement, Connection, OpenFlags, ToSql};
use sqlx::sqlite::SqliteConnectOptions;

use super::query::{Query, Row, Value};
use super::{Error, Result};

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
            Self::Real(number) => ToSqlOutput::Owned(Owned::Real(*number)),
        })
    }
}

fn value(found: ValueRef<'_>) -> Result<Value> {
    Ok(match found {
        ValueRef::Null => Value::NoText,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => {
            // There is no such column.
            return Err(Error::Column { column: "blob".into(), value: format!("{} bytes", bytes.len()) });
        }
    })
}
