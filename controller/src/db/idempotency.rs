//! Answers that were given to mutations with an `Idempotency-Key`.

use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::id::AccountId;
use shared::time::Timestamp;
use shared::{Code, Error as Fault};

use super::row::json;
use super::{Result, Tx, query};
use crate::cx::Idempotency;

/// The answer that was given to this key before. An error when the key belongs to another request.
pub async fn find<R: DeserializeOwned>(tx: &mut Tx, account: AccountId, key: &Idempotency) -> Result<Option<R>> {
    tx.dialect().lock_until_commit(tx.conn(), &format!("{account}/{}", key.key)).await?;
    let row = query("SELECT request_hash, reply FROM idempotency WHERE account_id = $1 AND key = $2")
        .bind(account.to_string())
        .bind(key.key.clone())
        .fetch_optional(tx.conn())
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.text("request_hash")? != key.request_hash {
        return Err(mismatch(key).into());
    }
    row.json("reply").map(Some)
}

/// Remembers the answer to this key before it is true, in the transaction that will make it so. The answer
/// that was given before, when there is one; an error when the key belongs to another request.
pub async fn claim<R: Serialize + DeserializeOwned>(
    tx: &mut Tx,
    account: AccountId,
    key: &Idempotency,
    reply: &R,
    now: Timestamp,
) -> Result<Option<R>> {
    if insert(tx, account, key, reply, now).await? { Ok(None) } else { find(tx, account, key).await }
}

/// Remembers the answer to this key, in the transaction that makes it true.
pub async fn record<R: Serialize>(
    tx: &mut Tx,
    account: AccountId,
    key: &Idempotency,
    reply: &R,
    now: Timestamp,
) -> Result<()> {
    if insert(tx, account, key, reply, now).await? {
        return Ok(());
    }
    // Whoever was quicker did not wait for the lock of `find`, so it was a request of another kind.
    Err(mismatch(key).into())
}

fn mismatch(key: &Idempotency) -> Fault {
    let text = format!("Idempotency-Key {:?} was used for another request: use a new key for a new request", key.key);
    Fault::new(Code::IdempotencyMismatch, text)
}

/// False when the key has been used. Waits for whoever is about to use it.
async fn insert<R: Serialize>(
    tx: &mut Tx,
    account: AccountId,
    key: &Idempotency,
    reply: &R,
    now: Timestamp,
) -> Result<bool> {
    let rows = query(
        "INSERT INTO idempotency (account_id, key, request_hash, reply, created_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (account_id, key) DO NOTHING",
    )
    .bind(account.to_string())
    .bind(key.key.clone())
    .bind(key.request_hash.clone())
    .bind(json(reply)?)
    .bind(now.ms())
    .execute(tx.conn())
    .await?;
    Ok(rows == 1)
}

/// Forgets answers older than `before`, the oldest `max` of them; answers how many.
pub async fn trim(tx: &mut Tx, before: Timestamp, max: u32) -> Result<u64> {
    query(
        "DELETE FROM idempotency WHERE (account_id, key) IN
             (SELECT account_id, key FROM idempotency WHERE created_at < $1 ORDER BY created_at LIMIT $2)",
    )
    .bind(before.ms())
    .bind(i64::from(max))
    .execute(tx.conn())
    .await
}
