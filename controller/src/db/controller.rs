//! Rows of controllers: who is a member of the ring. Only the database's clock is used here.

use shared::id::ControllerId;
use sqlx::AssertSqlSafe;

use super::row::RowExt;
use super::{Conn, Dialect, Result, Tx};

/// Joins: a row for this controller under a new generation, which is answered.
pub async fn join(tx: &mut Tx, id: ControllerId, address: &str, version: &str) -> Result<u64> {
    let now = tx.dialect().now_ms();
    let generation = super::counter::next(tx, "generation").await?;
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO controller (id, address, version, generation, started_at, heartbeat_at) VALUES ($1, $2, $3, $4, {now}, {now})"
    )))
    .bind(id.to_string())
    .bind(address.to_string())
    .bind(version.to_string())
    .bind(generation)
    .execute(tx.conn())
    .await?;
    Ok(u64::try_from(generation).unwrap_or_default())
}

/// Removes the rows of all other controllers: an embedded database has one, and its file lock says
/// that no other is running.
pub async fn remove_others(tx: &mut Tx, id: ControllerId) -> Result<()> {
    sqlx::query("DELETE FROM controller WHERE id <> $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(())
}

/// Touches this controller's row. False when it is gone: others have taken over.
pub async fn touch(conn: &mut Conn, dialect: Dialect, id: ControllerId) -> Result<bool> {
    let now = dialect.now_ms();
    let done = sqlx::query(AssertSqlSafe(format!("UPDATE controller SET heartbeat_at = {now} WHERE id = $1")))
        .bind(id.to_string())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Leaves: the row goes.
pub async fn leave(tx: &mut Tx, id: ControllerId) -> Result<()> {
    sqlx::query("DELETE FROM controller WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(())
}

/// Ids of the controllers whose heartbeat is at most `max_age_ms` old.
pub async fn alive(conn: &mut Conn, dialect: Dialect, max_age_ms: i64) -> Result<Vec<ControllerId>> {
    let now = dialect.now_ms();
    let rows =
        sqlx::query(AssertSqlSafe(format!("SELECT id FROM controller WHERE heartbeat_at >= {now} - $1 ORDER BY id")))
            .bind(max_age_ms)
            .fetch_all(conn)
            .await?;
    rows.iter().map(|row| row.parse("id")).collect()
}
