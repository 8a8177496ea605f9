//! Lists: one page of a noun, filtered, sorted and continued by a cursor.
//!
//! Pages are keyset-paginated: a cursor names the sort value and the id of the last item, and the
//! next page begins behind them, by an index. Rows that come or go between two pages neither repeat
//! others nor hide them. The SQL is the same on SQLite and PostgreSQL.
//!
//! A cursor is opaque to clients and belongs to the `sort` and `q` that it was made with.

#[cfg(test)]
mod tests;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use shared::Error as Wire;
use shared::api::page::{DEFAULT_LIMIT, ListParams, MAX_LIMIT};
use shared::id::AccountId;
use xxhash_rust::xxh3::xxh3_64;

use super::filter::{Bind, Sql, compile, find};
pub use super::filter::{Field, Kind};
use super::query::Query;
use super::{Conn, Result, Row, query_of};

/// How long a list may take.
pub(super) const LONGEST: Duration = Duration::from_secs(2);
/// The condition of a list of everything.
const ALL: &str = "1 = 1";
/// How much later a server may say so.
const ANSWER: Duration = Duration::from_millis(500);

/// What can be listed, and how.
#[derive(Clone, Copy, Debug)]
pub struct ListSpec {
    /// What to select, such as `vm.*`.
    pub columns: &'static str,
    /// The table or join, such as `vm` or `volume LEFT JOIN vm ON …`.
    pub from: &'static str,
    /// A condition that always holds, such as `vm.deleted_at IS NULL`.
    pub only: Option<&'static str>,
    /// What may be filtered and sorted by; the id must be among them.
    pub fields: &'static [Field],
    /// The name of the field that is unique and never NULL: `id`, or `cursor` for events.
    pub id: &'static str,
    /// Sort when none is asked for, as in `sort`: `id` (ids are time-ordered) or `-id`.
    pub default_sort: &'static str,
    /// The column with the owner, for nouns that belong to an account.
    pub account: Option<&'static str>,
}

/// One page of rows.
pub struct Rows {
    /// The rows, in the order asked for.
    pub rows: Vec<Row>,
    /// Cursor of the next page, when there is one.
    pub next_cursor: Option<String>,
    /// How many match in all, when that was asked.
    pub count: Option<u64>,
}

/// A list for which very many rows are read is given up: by the database, or when that does not answer at all. So is
/// one that waited for others like it.
pub(super) async fn in_time<T>(list: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(LONGEST + ANSWER, list).await {
        Ok(Err(error)) if !error.took_too_long() => Err(error),
        Ok(Ok(result)) => Ok(result),
        _ => {
            let text = "the list takes too long: too many rows have to be read for it. Add a condition on id, name, state \
                        or the id of something it belongs to, sort by id, and leave count out";
            Err(Wire::new(shared::Code::DeadlineExceeded, text).into())
        }
    }
}

/// Reads one page. `scope` is the account whose resources are seen; `None`: all.
///
/// # Errors
/// `Refused(invalid_request)` that names `q`, `sort`, `limit` or `cursor`; failures of the database.
pub async fn list(conn: &mut Conn, spec: &ListSpec, params: &ListParams, scope: Option<AccountId>) -> Result<Rows> {
    let plan = Plan::new(spec, params, scope)?;
    let (page, after) = (plan.page(), plan.cursor.is_some());
    let mut rows = page.query().fetch_all(&mut *conn).await?;
    let next_cursor = if rows.len() > plan.limit as usize {
        rows.truncate(plan.limit as usize);
        rows.last().map(|row| plan.cursor_behind(row)).transpose()?
    } else {
        None
    };
    let count = match params.count {
        // Everything is on this page: no second query.
        Some(true) if next_cursor.is_none() && !after => Some(rows.len() as u64),
        Some(true) => {
            let total: i64 = plan.count().query().fetch_one(conn).await?.int("n")?;
            Some(u64::try_from(total).unwrap_or(0))
        }
        _ => None,
    };
    Ok(Rows { rows, next_cursor, count })
}

impl Sql {
    /// The query with its parameters bound.
    fn query(&self) -> Query {
        // The text is made of pieces of this program and `$n`; what callers wrote is bound.
        let mut query = query_of(self.text.clone());
        for bind in &self.binds {
            query = match bind {
                Bind::Text(text) => query.bind(text.clone()),
                Bind::Int(n) => query.bind(*n),
            };
        }
        query
    }
}

/// What a cursor holds.
#[derive(Debug, Serialize, Deserialize)]
struct Cursor {
    /// Hash of `sort` and `q`.
    h: u64,
    /// Sort value of the last item.
    v: Value,
    /// Id of the last item.
    i: Value,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Value {
    Int(i64),
    Text(String),
}

impl Value {
    fn of(row: &Row, column: &str, field: &Field) -> Result<Self> {
        Ok(if field.is_number() { Self::Int(row.int(column)?) } else { Self::Text(row.text(column)?) })
    }

    fn into_bind(self, field: &Field) -> Option<Bind> {
        match self {
            Self::Int(n) if field.is_number() => Some(Bind::Int(n)),
            Self::Text(text) if !field.is_number() && !text.contains('\0') => Some(Bind::Text(text)),
            _ => None,
        }
    }
}

/// A list request that was checked.
struct Plan<'a> {
    spec: &'a ListSpec,
    sort: &'a Field,
    id: &'a Field,
    descending: bool,
    limit: u32,
    /// Filter and scope, as conditions joined by AND.
    conditions: Sql,
    cursor: Option<(Bind, Bind)>,
    hash: u64,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a ListSpec, params: &ListParams, scope: Option<AccountId>) -> Result<Self, Wire> {
        let limit = params.limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Wire::invalid("limit", format!("must be 1 to {MAX_LIMIT}")));
        }
        let asked = params.sort.as_deref().unwrap_or(spec.default_sort);
        let descending = asked.starts_with('-');
        let sort = find(spec.fields, asked.strip_prefix('-').unwrap_or(asked)).ok().filter(|f| f.sortable);
        let sort = sort.ok_or_else(|| {
            let known: Vec<_> = spec.fields.iter().filter(|f| f.sortable).map(|f| f.name).collect();
            let known = known.join(", ");
            Wire::invalid("sort", format!("must be one of {known}, with \"-\" before it for descending"))
        })?;
        let id = find(spec.fields, spec.id).map_err(Wire::internal)?;
        let q = params.q.as_deref().map(str::trim).filter(|q| !q.is_empty());
        let mut conditions = Sql::default();
        conditions.push(spec.only.unwrap_or(ALL));
        if let (Some(column), Some(account)) = (spec.account, scope) {
            conditions.push(" AND ").push(column).push(" = ").bind(Bind::Text(account.to_string()));
        }
        if let Some(q) = q {
            conditions.push(" AND ");
            compile(q, spec.fields, &mut conditions)?;
        }
        let hash = xxh3_64(format!("{asked}\0{}", q.unwrap_or_default()).as_bytes());
        let mut plan = Self { spec, sort, id, descending, limit, conditions, cursor: None, hash };
        plan.cursor = params.cursor.as_deref().map(|cursor| plan.read_cursor(cursor)).transpose()?;
        Ok(plan)
    }

    fn read_cursor(&self, text: &str) -> Result<(Bind, Bind), Wire> {
        let cursor = (text.len() <= 4096)
            .then(|| URL_SAFE_NO_PAD.decode(text).ok())
            .flatten()
            .and_then(|json| serde_json::from_slice::<Cursor>(&json).ok())
            .ok_or_else(|| {
                Wire::invalid("cursor", "is not a cursor: give next_cursor of the page before, unchanged")
            })?;
        if cursor.h != self.hash {
            return Err(Wire::invalid("cursor", "belongs to another sort or q: ask with the same sort and q again"));
        }
        match (cursor.v.into_bind(self.sort), cursor.i.into_bind(self.id)) {
            (Some(value), Some(id)) => Ok((value, id)),
            _ => Err(Wire::invalid("cursor", "is not a cursor of this list")),
        }
    }

    fn cursor_behind(&self, row: &Row) -> Result<String> {
        let v = Value::of(row, "kring_sort", self.sort)?;
        let cursor = Cursor { h: self.hash, v, i: Value::of(row, "kring_id", self.id)? };
        let json = serde_json::to_vec(&cursor).map_err(|e| Wire::internal(format_args!("a cursor: {e}")))?;
        Ok(URL_SAFE_NO_PAD.encode(json))
    }

    fn page(&self) -> Sql {
        let mut sql = Sql { text: String::with_capacity(512), binds: self.conditions.binds.clone() };
        let (sort, id) = (self.sort.sql, self.id.sql);
        sql.push("SELECT ").push(self.spec.columns).push(", ").push(sort).push(" AS kring_sort, ");
        sql.push(id).push(" AS kring_id FROM ").push(self.spec.from);
        sql.push(" WHERE ").push(&self.conditions.text);
        let (than, order) = if self.descending { (" < ", " DESC") } else { (" > ", " ASC") };
        let by_id = self.sort.name == self.id.name;
        match self.cursor.clone() {
            None => {}
            Some((_, after)) if by_id => {
                sql.push(" AND ").push(id).push(than).bind(after);
            }
            Some((value, after)) => {
                sql.push(" AND (").push(sort).push(", ").push(id).push(")").push(than);
                sql.push("(").bind(value).push(", ").bind(after).push(")");
            }
        }
        sql.push(" ORDER BY ").push(sort).push(order);
        if !by_id {
            sql.push(", ").push(id).push(order);
        }
        sql.push(" LIMIT ").bind(Bind::Int(i64::from(self.limit) + 1));
        sql
    }

    fn count(&self) -> Sql {
        let mut sql = Sql { text: String::new(), binds: self.conditions.binds.clone() };
        sql.push("SELECT COUNT(*) AS n FROM ").push(self.spec.from);
        // SQLite counts a table that nothing is asked of without looking at its rows.
        if self.conditions.text != ALL {
            sql.push(" WHERE ").push(&self.conditions.text);
        }
        sql
    }
}
