//! Rows of instance types.

use shared::api::instance_type::InstanceType;
use shared::id::InstanceTypeId;

use super::filter::Field;
use super::page::ListSpec;
use super::row::name_taken;
use super::{Conn, Result, Row, Tx, query};

/// Lists of instance types.
pub const LIST: ListSpec = ListSpec {
    columns: "instance_type.*",
    from: "instance_type",
    only: None,
    fields: &[
        Field::id("id", "instance_type.id").sortable(),
        Field::text("name", "instance_type.name").sortable(),
        Field::int("vcpus", "instance_type.vcpus").sortable(),
        Field::bytes("memory", "instance_type.memory").sortable(),
        Field::time("created_at", "instance_type.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: None,
};

/// Adds an instance type; `name_taken` when the name is.
pub async fn insert(tx: &mut Tx, instance_type: &InstanceType) -> Result<()> {
    let done = query("INSERT INTO instance_type (id, name, vcpus, memory, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(instance_type.id.to_string())
        .bind(instance_type.name.to_string())
        .bind(i64::from(instance_type.vcpus))
        .bind(instance_type.memory.as_i64())
        .bind(instance_type.created_at.ms())
        .execute(tx.conn())
        .await;
    name_taken(done, "instance type", &instance_type.name)
}

/// One instance type.
pub async fn get(conn: &mut Conn, id: InstanceTypeId) -> Result<Option<InstanceType>> {
    let row = query("SELECT * FROM instance_type WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// Removes an instance type; false when there is none.
pub async fn delete(tx: &mut Tx, id: InstanceTypeId) -> Result<bool> {
    let rows = query("DELETE FROM instance_type WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// Reads an instance type, without links.
pub fn from_row(row: &Row) -> Result<InstanceType> {
    Ok(InstanceType {
        id: row.parse("id")?,
        name: row.parse("name")?,
        vcpus: row.count("vcpus")?,
        memory: row.bytes("memory")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}
