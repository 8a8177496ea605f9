//! Rows of settings that somebody changed; the others have their defaults.

use std::collections::HashMap;

use serde_json::Value;
use shared::time::Timestamp;

use super::row::json;
use super::{Conn, Result, Tx, query};

/// A value that somebody set.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// The value.
    pub value: Value,
    /// When it was set.
    pub updated_at: Timestamp,
}

/// All values that somebody set, by key.
pub async fn all(conn: &mut Conn) -> Result<HashMap<String, Changed>> {
    let rows = query("SELECT key, value, updated_at FROM setting").fetch_all(conn).await?;
    rows.iter()
        .map(|row| Ok((row.text("key")?, Changed { value: row.json("value")?, updated_at: row.time("updated_at")? })))
        .collect()
}

/// Sets a value.
pub async fn upsert(tx: &mut Tx, key: &str, value: &Value, now: Timestamp) -> Result<()> {
    query(
        "INSERT INTO setting (key, value, updated_at) VALUES ($1, $2, $3)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
    )
    .bind(key.to_string())
    .bind(json(value)?)
    .bind(now.ms())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Takes a setting back to its default.
pub async fn delete(tx: &mut Tx, key: &str) -> Result<()> {
    query("DELETE FROM setting WHERE key = $1").bind(key.to_string()).execute(tx.conn()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::db::testing::dbs;

    #[tokio::test]
    async fn a_value_is_replaced_and_taken_back() {
        for db in dbs().await {
            for n in 1..=2 {
                db.write(move |tx| async move { upsert(tx, "a.b", &n.into(), Timestamp(n)).await }.boxed())
                    .await
                    .unwrap();
            }
            let set = all(&mut db.read().await.unwrap()).await.unwrap();
            let expected = Changed { value: 2.into(), updated_at: Timestamp(2) };
            assert_eq!(set, HashMap::from([("a.b".to_string(), expected)]));
            db.write(|tx| delete(tx, "a.b").boxed()).await.unwrap();
            assert_eq!(all(&mut db.read().await.unwrap()).await.unwrap(), HashMap::new());
        }
    }
}
