//! Rows of tokens. A secret is never here, only its hash.

use shared::api::account::{AccountKind, Token};
use shared::id::TokenId;

use super::filter::Field;
use super::page::ListSpec;
use super::{Conn, Result, Row, Tx, query};

/// Lists of tokens.
pub const LIST: ListSpec = ListSpec {
    columns: "token.*",
    from: "token",
    only: None,
    fields: &[
        Field::id("id", "token.id").sortable(),
        Field::text("name", "token.name").sortable(),
        Field::id("account_id", "token.account_id"),
        Field::text("account.name", "account.name").through("account", "account.id", "token.account_id"),
        Field::time("expires_at", "token.expires_at"),
        Field::time("created_at", "token.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("token.account_id"),
};

/// Adds a token with the hexadecimal SHA-256 of its secret. A foreign key stands in the way when there
/// is no such account.
pub async fn insert(tx: &mut Tx, token: &Token, secret_sha256: &str) -> Result<()> {
    query(
        "INSERT INTO token (id, name, account_id, secret_sha256, expires_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(token.id.to_string())
    .bind(token.name.to_string())
    .bind(token.account_id.to_string())
    .bind(secret_sha256.to_string())
    .bind(token.expires_at.map(|at| at.ms()))
    .bind(token.created_at.ms())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// One token.
pub async fn get(conn: &mut Conn, id: TokenId) -> Result<Option<Token>> {
    let row = query("SELECT * FROM token WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// The token whose secret has this hash, expired or not, and the kind of its account.
pub async fn find(conn: &mut Conn, secret_sha256: &str) -> Result<Option<(Token, AccountKind)>> {
    let row = query(
        "SELECT token.*, account.kind AS account_kind FROM token JOIN account ON account.id = token.account_id
         WHERE token.secret_sha256 = $1",
    )
    .bind(secret_sha256.to_string())
    .fetch_optional(conn)
    .await?;
    row.map(|row| Ok((from_row(&row)?, row.word("account_kind")?))).transpose()
}

/// Removes a token; false when there is none.
pub async fn delete(tx: &mut Tx, id: TokenId) -> Result<bool> {
    let rows = query("DELETE FROM token WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// Reads a token.
pub fn from_row(row: &Row) -> Result<Token> {
    Ok(Token {
        id: row.parse("id")?,
        name: row.parse("name")?,
        account_id: row.parse("account_id")?,
        expires_at: row.opt_time("expires_at")?,
        created_at: row.time("created_at")?,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use shared::id::AccountId;
    use shared::time::Timestamp;

    use super::*;
    use crate::db::testing::{Seed, dbs};

    #[tokio::test]
    async fn a_token_is_found_by_the_hash_of_its_secret() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let token = |account_id, expires_at| Token {
                id: TokenId::new(),
                name: "ci".parse().unwrap(),
                account_id,
                expires_at,
                created_at: Timestamp(1),
            };
            let add = |token: Token, hash: &'static str| {
                db.write(move |tx| async move { insert(tx, &token, hash).await }.boxed())
            };
            let (first, second) = (token(seed.account.id, None), token(seed.account.id, Some(Timestamp(5))));
            add(first.clone(), "aa").await.unwrap();
            add(second.clone(), "bb").await.unwrap();
            assert!(add(token(AccountId::new(), None), "cc").await.unwrap_err().is_foreign_key_violation());
            let mut conn = db.read().await.unwrap();
            assert_eq!(find(&mut conn, "aa").await.unwrap(), Some((first.clone(), AccountKind::Normal)));
            assert_eq!(find(&mut conn, "dd").await.unwrap(), None);
            assert_eq!(get(&mut conn, second.id).await.unwrap(), Some(second));
            assert!(db.write(move |tx| delete(tx, first.id).boxed()).await.unwrap());
            drop(conn);
            assert_eq!(find(&mut db.read().await.unwrap(), "aa").await.unwrap(), None);
        }
    }
}
