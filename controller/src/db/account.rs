//! Rows of accounts.

use shared::api::account::Account;
use shared::id::AccountId;
use shared::name::Name;

use super::filter::Field;
use super::page::ListSpec;
use super::row::{name_taken, word};
use super::{Conn, Result, Row, Tx, query};

/// Lists of accounts.
pub const LIST: ListSpec = ListSpec {
    columns: "account.*",
    from: "account",
    only: None,
    fields: &[
        Field::id("id", "account.id").sortable(),
        Field::text("name", "account.name").sortable(),
        Field::text("kind", "account.kind"),
        Field::time("created_at", "account.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("account.id"),
};

/// Adds an account; `name_taken` when the name is.
pub async fn insert(tx: &mut Tx, account: &Account) -> Result<()> {
    let done = query("INSERT INTO account (id, name, kind, created_at) VALUES ($1, $2, $3, $4)")
        .bind(account.id.to_string())
        .bind(account.name.to_string())
        .bind(word(&account.kind))
        .bind(account.created_at.ms())
        .execute(tx.conn())
        .await;
    name_taken(done, "account", &account.name)
}

/// One account.
pub async fn get(conn: &mut Conn, id: AccountId) -> Result<Option<Account>> {
    let row = query("SELECT * FROM account WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// The account of a name.
pub async fn by_name(conn: &mut Conn, name: &Name) -> Result<Option<Account>> {
    let row = query("SELECT * FROM account WHERE name = $1").bind(name.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// Reads an account.
pub fn from_row(row: &Row) -> Result<Account> {
    Ok(Account {
        id: row.parse("id")?,
        name: row.parse("name")?,
        kind: row.word("kind")?,
        created_at: row.time("created_at")?,
    })
}

/// Removes an account with its tokens. A foreign key stands in the way while it owns anything else.
pub async fn delete(tx: &mut Tx, id: AccountId) -> Result<()> {
    for sql in ["DELETE FROM token WHERE account_id = $1", "DELETE FROM account WHERE id = $1"] {
        query(sql).bind(id.to_string()).execute(tx.conn()).await?;
    }
    Ok(())
}
