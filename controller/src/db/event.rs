//! Rows of events: appended in the transaction that makes them true, read in the order in which they happened to
//! each resource.
//!
//! What a transaction appends is kept until its end and written at once. Then it has every lock that it needs, so
//! of two that touch the same resource the later one has the greater cursors. SQLite has one writer, and cursors from
//! a counter. A counter on a server would be locked until the commit is on the disk, and all controllers would commit
//! one after the other. There they come from a sequence and are committed in any order, and a reader stops before
//! those that a running transaction may still commit: so one that has seen a cursor misses nothing before it.

use serde::Serialize;
use shared::api::event::Event;
use shared::api::page::{ListParams, Page};
use shared::id::{AccountId, ResourceId};
use shared::time::Timestamp;
use uuid::Uuid;

use super::filter::Field;
use super::page::ListSpec;
use super::row::{json, places};
use super::{Conn, Db, Dialect, Result, Row, Tx, query, query_of};

/// Lists of events.
const LIST: ListSpec = ListSpec {
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
    if events.is_empty() {
        return Ok(());
    }
    let mut cursor = match dialect {
        Dialect::Sqlite => super::counter::advance(conn, CURSOR, events.len()).await? - events.len() as i64,
        Dialect::Postgres => 0,
    };
    let mut left = events.drain(..);
    while left.len() > 0 {
        // Powers of two: the texts of statements stay few, and each is prepared once.
        let n = 1 << left.len().min(TOGETHER).ilog2();
        let rows: Vec<_> = (0..n).map(|row| format!("({})", places(row * 7 + 1, 7))).collect();
        // The text is made of pieces of this program and `$n`.
        let mut query = query_of(dialect.insert_events(&COLUMNS, &format!("VALUES {}", rows.join(", "))));
        for event in left.by_ref().take(n) {
            cursor += 1;
            query = query.bind(cursor).bind(event.path).bind(event.resource_kind).bind(event.resource_id);
            query = query.bind(event.account_id).bind(event.content).bind(event.at);
        }
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

/// How far the cursors of events have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursors {
    /// The newest; its event may not be committed yet.
    pub newest: i64,
    /// The last one up to which all events that ever come are there to be read, from now on.
    pub settled: i64,
}

/// Asks how far they have come.
pub async fn cursors(conn: &mut Conn, dialect: Dialect) -> Result<Cursors> {
    let row = query_of(dialect.cursors()).fetch_one(conn).await?;
    Ok(Cursors { newest: row.int("newest")?, settled: row.int("settled")? })
}

/// One page of those that are settled: a stream that begins behind the last one of a list shall miss none before it.
///
/// # Errors
/// Those of [`Db::page`].
pub async fn list(db: &Db, params: ListParams, scope: Option<AccountId>) -> Result<Page<Event>> {
    // Asked before the events.
    let settled = cursors(&mut db.read().await?, db.dialect()).await?.settled;
    let descending = params.sort.as_deref().is_some_and(|sort| sort.starts_with('-'));
    let mut page = db.page(&LIST, params, scope).await?.read(from_row)?;
    let read = page.items.len();
    page.items.retain(|event| event.cursor <= settled);
    if page.items.len() < read && !descending {
        // What comes behind them is not settled either.
        page.next_cursor = None;
    }
    Ok(page)
}

/// Events after a cursor, oldest first, up to one that is settled; only those of `account` when it is given.
pub async fn between(
    conn: &mut Conn,
    (after, settled): (i64, i64),
    max: u32,
    account: Option<AccountId>,
) -> Result<Vec<Event>> {
    let whose = if account.is_some() { "AND account_id = $4" } else { "" };
    let sql = format!("SELECT * FROM event WHERE cursor > $1 AND cursor <= $2 {whose} ORDER BY cursor LIMIT $3");
    let mut query = query_of(sql).bind(after).bind(settled).bind(i64::from(max));
    if let Some(account) = account {
        query = query.bind(account.to_string());
    }
    query.fetch_all(conn).await?.iter().map(from_row).collect()
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

#[cfg(test)]
mod tests;
