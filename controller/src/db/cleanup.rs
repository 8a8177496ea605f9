//! Rows of owed clean-up: undoing that failed and is tried until it succeeds.

use shared::id::JobId;
use shared::time::Timestamp;
use uuid::Uuid;

use super::{Conn, Result, Row, Tx, query};

/// One owed undoing.
#[derive(Clone, Debug)]
pub struct Cleanup {
    /// Its id.
    pub id: Uuid,
    /// The job that owes it.
    pub job_id: JobId,
    /// The job's flow.
    pub kind: String,
    /// The step to undo.
    pub step: String,
    /// The resource that the job worked on.
    pub resource_id: Uuid,
    /// The command and what the steps had found, as JSON.
    pub data: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it failed the last time.
    pub last_error: String,
}

/// Owes an undoing.
pub async fn insert(tx: &mut Tx, cleanup: &Cleanup, next_at: Timestamp, now: Timestamp) -> Result<()> {
    query(
        "INSERT INTO cleanup (id, job_id, kind, step, resource_id, data, attempts, next_at, last_error, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(cleanup.id.to_string())
    .bind(cleanup.job_id.to_string())
    .bind(cleanup.kind.clone())
    .bind(cleanup.step.clone())
    .bind(cleanup.resource_id.to_string())
    .bind(cleanup.data.clone())
    .bind(i64::from(cleanup.attempts))
    .bind(next_at.ms())
    .bind(cleanup.last_error.clone())
    .bind(now.ms())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What is due, by resource, behind the one with this resource and id.
pub async fn due(conn: &mut Conn, now: Timestamp, after: Option<(Uuid, Uuid)>, max: u32) -> Result<Vec<Cleanup>> {
    let (resource, id) = after.map_or_else(Default::default, |(resource, id)| (resource.to_string(), id.to_string()));
    let rows = query(
        "SELECT * FROM cleanup WHERE next_at <= $1 AND (resource_id, id) > ($2, $3) ORDER BY resource_id, id LIMIT $4",
    )
    .bind(now.ms())
    .bind(resource)
    .bind(id)
    .bind(i64::from(max))
    .fetch_all(conn)
    .await?;
    rows.iter().map(from_row).collect()
}

/// How many undoings are owed.
pub async fn count(conn: &mut Conn) -> Result<i64> {
    let row = query("SELECT COUNT(*) AS n FROM cleanup").fetch_one(conn).await?;
    row.int("n")
}

/// It failed again: the next try is at `next_at`.
pub async fn postpone(tx: &mut Tx, id: Uuid, next_at: Timestamp, error: &str) -> Result<()> {
    query("UPDATE cleanup SET attempts = attempts + 1, next_at = $2, last_error = $3 WHERE id = $1")
        .bind(id.to_string())
        .bind(next_at.ms())
        .bind(error.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Makes everything due: something has changed that may let it succeed (a host is back, say).
pub async fn hasten(tx: &mut Tx, now: Timestamp) -> Result<u64> {
    let rows = query("UPDATE cleanup SET next_at = $1 WHERE next_at > $1").bind(now.ms()).execute(tx.conn()).await?;
    Ok(rows)
}

/// It is done.
pub async fn delete(tx: &mut Tx, id: Uuid) -> Result<()> {
    query("DELETE FROM cleanup WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(())
}

fn from_row(row: &Row) -> Result<Cleanup> {
    Ok(Cleanup {
        id: row.parse("id")?,
        job_id: row.parse("job_id")?,
        kind: row.text("kind")?,
        step: row.text("step")?,
        resource_id: row.parse("resource_id")?,
        data: row.text("data")?,
        attempts: row.count("attempts")?,
        last_error: row.text("last_error")?,
    })
}
