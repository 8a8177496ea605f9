//! Whose a resource is: what the gateway asks before it lets a tenant near one.

use shared::id::AccountId;
use sqlx::Row;
use uuid::Uuid;

use super::{Conn, Error, Result};

/// The account that a resource belongs to. `None`: there is no such resource, or its noun is
/// infrastructure and belongs to nobody.
///
/// # Errors
/// Failures of the database.
pub async fn owner_of(conn: &mut Conn, noun: &str, id: Uuid) -> Result<Option<AccountId>> {
    let sql = match noun {
        "image" => "SELECT account_id FROM image WHERE id = $1",
        "network" => "SELECT account_id FROM network WHERE id = $1",
        "vm" => "SELECT account_id FROM vm WHERE id = $1",
        "volume" => "SELECT account_id FROM volume WHERE id = $1",
        "job" => "SELECT account_id FROM job WHERE id = $1",
        "token" => "SELECT account_id FROM token WHERE id = $1",
        "account" => "SELECT id FROM account WHERE id = $1",
        _ => return Ok(None),
    };
    let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(conn).await?;
    let Some(row) = row else { return Ok(None) };
    let value: String = row.try_get(0)?;
    value.parse().map(Some).map_err(|_| Error::Column { column: "account_id".to_string(), value })
}
