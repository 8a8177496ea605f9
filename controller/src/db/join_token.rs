//! Rows of join tokens: each lets one host join, once.

use shared::id::{ClusterId, HostId, JoinTokenId};
use shared::time::Timestamp;

use super::{Result, Tx, query};

/// Adds a token.
pub async fn insert(
    tx: &mut Tx,
    id: JoinTokenId,
    secret_sha256: &str,
    cluster: ClusterId,
    expires_at: Timestamp,
    now: Timestamp,
) -> Result<()> {
    query("INSERT INTO join_token (id, secret_sha256, cluster_id, expires_at, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(id.to_string())
        .bind(secret_sha256.to_string())
        .bind(cluster.to_string())
        .bind(expires_at.ms())
        .bind(now.ms())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// What became of a token that a host presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// It is used now, by this host, which joins this cluster.
    Now(ClusterId),
    /// There is no such token.
    Unknown,
    /// It has expired.
    Expired,
    /// Another host has used it.
    Already,
}

/// Uses a token for `host`. The same host may use it again, since its first answer may have got lost.
pub async fn consume(tx: &mut Tx, secret_sha256: &str, host: HostId, now: Timestamp) -> Result<Used> {
    let row = query("SELECT id, cluster_id, expires_at, used_by FROM join_token WHERE secret_sha256 = $1")
        .bind(secret_sha256.to_string())
        .fetch_optional(tx.conn())
        .await?;
    let Some(row) = row else { return Ok(Used::Unknown) };
    if row.time("expires_at")? <= now {
        return Ok(Used::Expired);
    }
    if row.opt_parse::<HostId>("used_by")?.is_some_and(|by| by != host) {
        return Ok(Used::Already);
    }
    let id: JoinTokenId = row.parse("id")?;
    let rows = query("UPDATE join_token SET used_by = $2 WHERE id = $1 AND (used_by IS NULL OR used_by = $2)")
        .bind(id.to_string())
        .bind(host.to_string())
        .execute(tx.conn())
        .await?;
    Ok(if rows == 1 { Used::Now(row.parse("cluster_id")?) } else { Used::Already })
}

/// Removes tokens that expired before `before`, at most so many; answers how many.
pub async fn trim(tx: &mut Tx, before: Timestamp, max: u32) -> Result<u64> {
    query("DELETE FROM join_token WHERE id IN (SELECT id FROM join_token WHERE expires_at < $1 LIMIT $2)")
        .bind(before.ms())
        .bind(i64::from(max))
        .execute(tx.conn())
        .await
}
