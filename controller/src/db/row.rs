//! Reading columns into the types of Kring.

use std::hash::Hash;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use shared::api::page::Page;
use shared::time::Timestamp;
use shared::units::Bytes;
use sqlx::Row as _;

use super::gather::Found;
use super::page::Rows;
use super::query::Value;
use super::{Conn, Error, Result, Row, query_of};

impl Row {
    /// A text column.
    pub fn text(&self, column: &str) -> Result<String> {
        self.opt_text(column)?.ok_or_else(|| null(column))
    }

    /// A text column that may be NULL.
    pub fn opt_text(&self, column: &str) -> Result<Option<String>> {
        match self {
            Self::Sqlx(row) => Ok(row.try_get(column)?),
            Self::Embedded { names, values } => match find(names, values, column)? {
                Value::Text(text) => Ok(Some(text.clone())),
                Value::NoText | Value::NoInt => Ok(None),
                other => Err(unlike(column, other)),
            },
        }
    }

    /// A number column.
    pub fn int(&self, column: &str) -> Result<i64> {
        self.opt_int(column)?.ok_or_else(|| null(column))
    }

    /// A number column that may be NULL.
    pub fn opt_int(&self, column: &str) -> Result<Option<i64>> {
        match self {
            Self::Sqlx(row) => Ok(row.try_get(column)?),
            Self::Embedded { names, values } => match find(names, values, column)? {
                Value::Int(number) => Ok(Some(*number)),
                Value::NoText | Value::NoInt => Ok(None),
                other => Err(unlike(column, other)),
            },
        }
    }

    /// A text column that is read by `FromStr`: ids, names, states, addresses.
    pub fn parse<T: FromStr>(&self, column: &str) -> Result<T> {
        let value = self.text(column)?;
        value.parse().map_err(|_| Error::Column { column: column.to_string(), value })
    }

    /// The same for a column that may be NULL.
    pub fn opt_parse<T: FromStr>(&self, column: &str) -> Result<Option<T>> {
        let Some(value) = self.opt_text(column)? else { return Ok(None) };
        value.parse().map(Some).map_err(|_| Error::Column { column: column.to_string(), value })
    }

    /// A text column that holds JSON.
    pub fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        let value = self.text(column)?;
        serde_json::from_str(&value).map_err(|_| Error::Column { column: column.to_string(), value })
    }

    /// A word column that is read as a serde enum, such as a kind.
    pub fn word<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        let value = self.text(column)?;
        serde_json::from_value(serde_json::Value::String(value.clone()))
            .map_err(|_| Error::Column { column: column.to_string(), value })
    }

    /// A number column of a smaller type.
    pub fn number<T: TryFrom<i64>>(&self, column: &str) -> Result<T> {
        let value = self.int(column)?;
        T::try_from(value).map_err(|_| Error::Column { column: column.to_string(), value: value.to_string() })
    }

    /// The same for a column that may be NULL.
    pub fn opt_number<T: TryFrom<i64>>(&self, column: &str) -> Result<Option<T>> {
        self.opt_int(column)?.map(|_| self.number(column)).transpose()
    }

    /// A number column that holds a count.
    pub fn count(&self, column: &str) -> Result<u32> {
        self.number(column)
    }

    /// A number column that holds bytes.
    pub fn bytes(&self, column: &str) -> Result<Bytes> {
        self.int(column).map(Bytes::from_i64)
    }

    /// A number column that holds a time.
    pub fn time(&self, column: &str) -> Result<Timestamp> {
        self.int(column).map(Timestamp)
    }

    /// The same for a column that may be NULL.
    pub fn opt_time(&self, column: &str) -> Result<Option<Timestamp>> {
        Ok(self.opt_int(column)?.map(Timestamp))
    }
}

fn find<'r>(names: &[String], values: &'r [Value], column: &str) -> Result<&'r Value> {
    let found = names.iter().position(|name| name == column).and_then(|at| values.get(at));
    found.ok_or_else(|| Error::Sql(sqlx::Error::ColumnNotFound(column.to_string())))
}

fn null(column: &str) -> Error {
    Error::Column { column: column.to_string(), value: "NULL".to_string() }
}

fn unlike(column: &str, value: &Value) -> Error {
    Error::Column { column: column.to_string(), value: format!("{value:?}") }
}

/// The word that a serde enum is in JSON, for a column.
pub(in crate::db) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        // Only unit variants are stored as words; the round-trip tests of each noun would fail.
        _ => String::new(),
    }
}

/// A value as JSON text, for a column.
pub(in crate::db) fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::Refused(shared::Error::internal(format_args!("a value could not be written as JSON: {e}"))))
}

/// The parameters `$first`, `$first+1`, …, `count` of them, for an `IN (…)`. What sqlx builds by itself
/// for either database is `?`, which PostgreSQL does not understand.
pub(in crate::db) fn places(first: usize, count: usize) -> String {
    let places: Vec<_> = (first..first + count).map(|n| format!("${n}")).collect();
    places.join(", ")
}

/// The rows of `SELECT … IN` these ids: `head` is the text up to `IN`, `tail` what comes after it. Both are
/// made of words of this program.
pub(in crate::db) async fn rows_in<T: ToString>(
    conn: &mut Conn,
    head: &str,
    ids: impl ExactSizeIterator<Item = T>,
    tail: &str,
) -> Result<Vec<Row>> {
    let sql = format!("{head} IN ({}) {tail}", places(1, ids.len()));
    let mut query = query_of(sql);
    for id in ids {
        query = query.bind(id.to_string());
    }
    query.fetch_all(conn).await
}

/// The rows of `SELECT … IN` these ids, by their ids; `head` as for [`rows_in`]. One that cannot be read fails alone.
pub(in crate::db) async fn found_in<K, V>(
    conn: &mut Conn,
    head: &str,
    ids: &[K],
    from_row: fn(&Row) -> Result<V>,
) -> Result<Found<K, V>>
where
    K: ToString + FromStr + Eq + Hash,
{
    let rows = rows_in(conn, head, ids.iter().map(K::to_string), "").await?;
    rows.iter().map(|row| Ok((row.parse("id")?, from_row(row)))).collect()
}

/// Turns a violated unique key of an insert or a rename into `name_taken`.
pub(in crate::db) fn name_taken<T>(done: Result<T>, noun: &str, name: &shared::name::Name) -> Result<()> {
    let Err(error) = done else { return Ok(()) };
    if error.is_unique_violation() {
        let text = format!("a {noun} named {name} exists already: choose another name");
        return Err(shared::Error::new(shared::Code::NameTaken, text).into());
    }
    Err(error)
}

impl Rows {
    /// The rows as what they hold.
    pub fn read<T>(self, from_row: impl Fn(&Row) -> Result<T>) -> Result<Page<T>> {
        let items = self.rows.iter().map(from_row).collect::<Result<_>>()?;
        Ok(Page { items, next_cursor: self.next_cursor, count: self.count })
    }
}
