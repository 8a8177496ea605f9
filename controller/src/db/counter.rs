//! Numbers that only go up, in the order of commits.

use super::{Conn, Result, query};

/// The next value of a counter. Its row stays locked until the commit.
pub async fn next(conn: &mut Conn, name: &'static str) -> Result<i64> {
    advance(conn, name, 1).await
}

/// The last one of the next `by` values.
pub(super) async fn advance(conn: &mut Conn, name: &'static str, by: usize) -> Result<i64> {
    let row = query("UPDATE counter SET value = value + $2 WHERE name = $1 RETURNING value")
        .bind(name)
        .bind(by as i64)
        .fetch_one(conn)
        .await?;
    row.int("value")
}
