//! Numbers that only go up, in the order of commits.

use sqlx::Row;

use super::{Conn, Result};

/// The next value of a counter. Its row stays locked until the commit.
pub async fn next(conn: &mut Conn, name: &'static str) -> Result<i64> {
    let row = sqlx::query("UPDATE counter SET value = value + 1 WHERE name = $1 RETURNING value")
        .bind(name)
        .fetch_one(conn)
        .await?;
    Ok(row.try_get("value")?)
}
