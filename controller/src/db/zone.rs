//! Rows of zones.

use shared::api::zone::Zone;
use shared::id::ZoneId;

use super::filter::Field;
use super::page::ListSpec;
use super::row::name_taken;
use super::{Conn, Result, Row, Tx, query};

/// Lists of zones.
pub const LIST: ListSpec = ListSpec {
    columns: "zone.*",
    from: "zone",
    only: None,
    fields: &[
        Field::id("id", "zone.id").sortable(),
        Field::text("name", "zone.name").sortable(),
        Field::text("description", "zone.description"),
        Field::time("created_at", "zone.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: None,
};

/// Adds a zone; `name_taken` when the name is.
pub async fn insert(tx: &mut Tx, zone: &Zone) -> Result<()> {
    let done = query("INSERT INTO zone (id, name, description, created_at) VALUES ($1, $2, $3, $4)")
        .bind(zone.id.to_string())
        .bind(zone.name.to_string())
        .bind(zone.description.clone())
        .bind(zone.created_at.ms())
        .execute(tx.conn())
        .await;
    name_taken(done, "zone", &zone.name)
}

/// One zone.
pub async fn get(conn: &mut Conn, id: ZoneId) -> Result<Option<Zone>> {
    let row = query("SELECT * FROM zone WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// Whether there is any zone.
pub async fn any(conn: &mut Conn) -> Result<bool> {
    Ok(query("SELECT id FROM zone LIMIT 1").fetch_optional(conn).await?.is_some())
}

/// Removes a zone; false when there is none. A foreign key stands in the way while it has clusters.
pub async fn delete(tx: &mut Tx, id: ZoneId) -> Result<bool> {
    let rows = query("DELETE FROM zone WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// Reads a zone, without links.
pub fn from_row(row: &Row) -> Result<Zone> {
    Ok(Zone {
        id: row.parse("id")?,
        name: row.parse("name")?,
        description: row.text("description")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}
