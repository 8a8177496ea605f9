//! Rows of events: appended in the transaction that makes them true, read in the order of commits.
//!
//! The cursor comes from a counter row, whose lock is held until the commit: so the order of cursors
//! is the order of commits on both databases, and a reader that has seen a cursor misses nothing
//! before it. What a transaction appends is kept until its end and written at once, so the lock is
//! held shortly.

use serde::Serialize;
use shared::api::event::Event;
use shared::id::{AccountId, ResourceId};
use shared::time::Timestamp;
use uuid::Uuid;

use super::filter::Field;
use super::page::ListSpec;
use super::row::{json, places};
use super::{Conn, Dialect, Result, Row, Tx, query, query_of};

/// Lists of events.
pub const LIST: ListSpec = ListSpec {
    columns: "event.*",
    from: "event",
    only: None,
    fields: &[
        Field::int("cursor", "event.cursor").sortable(),
        Field::text("path", "event.path"),
        Field::text("resource_kind", "event.resource_kind"),
        Field::id("resource_id", "event.resource_id"),
        Field::time("at", "event.at").sortable(),
    ],
    id: "cursor",
    default_sort: "cursor",
    account: Some("event.account_id"),
};

/// An event to append.
pub struct NewEvent<'a, C> {
    /// What happened.
    pub path: &'a str,
    /// Noun of the resource.
    pub resource_kind: &'a str,
    /// The resource.
    pub resource_id: Uuid,
    /// Its owner; `None` for what only admins see.
    pub account_id: Option<AccountId>,
    /// The content.
    pub content: &'a C,
    /// When it happened.
    pub at: Timestamp,
}

/// An event that is written when its transaction ends.
#[derive(Debug)]
pub(super) struct Appended {
    path: String,
    resource_kind: String,
    resource_id: String,
    account_id: Option<String>,
    content: String,
    at: i64,
}

/// Appends an event; its watchers wake after the commit.
pub fn append<C: Serialize>(tx: &mut Tx, event: &NewEvent<'_, C>) -> Result<()> {
    tx.events.push(Appended {
        path: event.path.to_string(),
        resource_kind: event.resource_kind.to_string(),
        resource_id: event.resource_id.to_string(),
        account_id: event.account_id.map(|id| id.uuid().to_string()),
        content: json(event.content)?,
        at: event.at.ms(),
    });
    Ok(())
}

/// Most events in one statement.
const TOGETHER: usize = 32;
const CURSOR: &str = "event_cursor";
const COLUMNS: [&str; 7] = ["cursor", "path", "resource_kind", "resource_id", "account_id", "content", "at"];

/// Writes what was appended, in order: the last thing before the commit.
pub(super) async fn write(conn: &mut Conn, dialect: Dialect, events: &mut Vec<Appended>) -> Result<()> {
    let mut left = events.drain(..);
    while left.len() > 0 {
        // Powers of two: the texts of statements stay few, and each is prepared once.
        let n = 1 << left.len().min(TOGETHER).ilog2();
        let rows: Vec<_> = (0..n).map(|row| format!("({})", places(row * 7 + 1, 7))).collect();
        let rows = format!("VALUES {}", rows.join(", "));
        let (sql, mut cursor) = match dialect.insert_counted("event", &COLUMNS, &rows, CURSOR, n) {
            Some(sql) => (sql, 0),
            None => {
                let last = super::counter::advance(conn, CURSOR, n).await?;
                (format!("INSERT INTO event ({}) {rows}", COLUMNS.join(", ")), last - n as i64)
            }
        };
        // The text is made of pieces of this program and `$n`.
        let mut query = query_of(sql);
        for event in left.by_ref().take(n) {
            cursor += 1;
            query = query.bind(cursor).bind(event.path).bind(event.resource_kind).bind(event.resource_id);
            query = query.bind(event.account_id).bind(event.content).bind(event.at);
        }
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

/// The cursor of the newest event; 0 when there is none.
pub async fn newest(conn: &mut Conn) -> Result<i64> {
    let row = query("SELECT value FROM counter WHERE name = 'event_cursor'").fetch_one(conn).await?;
    row.int("value")
}

/// Events after `cursor`, oldest first; only those of `account` when it is given.
pub async fn after(conn: &mut Conn, cursor: i64, max: u32, account: Option<AccountId>) -> Result<Vec<Event>> {
    let rows = match account {
        None => {
            query("SELECT * FROM event WHERE cursor > $1 ORDER BY cursor LIMIT $2")
                .bind(cursor)
                .bind(i64::from(max))
                .fetch_all(conn)
                .await?
        }
        Some(account) => {
            query("SELECT * FROM event WHERE cursor > $1 AND account_id = $3 ORDER BY cursor LIMIT $2")
                .bind(cursor)
                .bind(i64::from(max))
                .bind(account.to_string())
                .fetch_all(conn)
                .await?
        }
    };
    rows.iter().map(from_row).collect()
}

/// Removes events older than `before`; answers how many.
pub async fn trim(tx: &mut Tx, before: Timestamp, max: u32) -> Result<u64> {
    let rows = query("DELETE FROM event WHERE cursor IN (SELECT cursor FROM event WHERE at < $1 ORDER BY at LIMIT $2)")
        .bind(before.ms())
        .bind(i64::from(max))
        .execute(tx.conn())
        .await?;
    Ok(rows)
}

/// Reads an event.
pub fn from_row(row: &Row) -> Result<Event> {
    Ok(Event {
        cursor: row.int("cursor")?,
        path: row.text("path")?,
        resource_kind: row.text("resource_kind")?,
        resource_id: row.parse("resource_id")?,
        content: row.json("content")?,
        at: row.time("at")?,
    })
}
