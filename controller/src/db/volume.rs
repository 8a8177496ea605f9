//! Rows of volumes.

use std::collections::HashMap;

use shared::api::image::DiskFormat;
use shared::api::volume::{Volume, VolumeKind, VolumeState};
use shared::id::{HostId, VmId, VolumeId};
use shared::{Code, Error as Fault};

use super::filter::Field;
use super::page::ListSpec;
use super::row::{name_taken, places, rows_in, word};
use super::{Conn, Result, Row, Tx, query, query_of};

/// Lists of volumes.
pub const LIST: ListSpec = ListSpec {
    columns: "volume.*",
    from: "volume",
    only: None,
    fields: &[
        Field::id("id", "volume.id").sortable(),
        Field::text("name", "volume.name").sortable(),
        Field::text("kind", "volume.kind"),
        Field::text("state", "volume.state").sortable(),
        Field::bytes("size", "volume.size").sortable(),
        Field::text("format", "volume.format"),
        Field::id("storage_id", "volume.storage_id"),
        Field::id("host_id", "volume.host_id"),
        Field::text("host.name", "host.name").through("host", "host.id", "volume.host_id"),
        Field::id("vm_id", "volume.vm_id"),
        Field::text("vm.name", "vm.name").through("vm", "vm.id", "volume.vm_id"),
        Field::id("image_id", "volume.image_id"),
        Field::id("account_id", "volume.account_id"),
        Field::time("created_at", "volume.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("volume.account_id"),
};

/// Adds a volume; `name_taken` when the name is.
pub async fn insert(tx: &mut Tx, volume: &Volume) -> Result<()> {
    let done = query(
        "INSERT INTO volume (id, name, account_id, kind, state, size, format, storage_id, host_id, vm_id, device, image_id,
             created_at, version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 0)",
    )
    .bind(volume.id.to_string())
    .bind(volume.name.to_string())
    .bind(volume.account_id.to_string())
    .bind(word(&volume.kind))
    .bind(volume.state.as_str())
    .bind(volume.size.as_i64())
    .bind(volume.format.as_str())
    .bind(volume.storage_id.to_string())
    .bind(volume.host_id.map(|id| id.to_string()))
    .bind(volume.vm_id.map(|id| id.to_string()))
    .bind(volume.device.clone())
    .bind(volume.image_id.map(|id| id.to_string()))
    .bind(volume.created_at.ms())
    .execute(tx.conn())
    .await;
    name_taken(done, "volume", &volume.name)
}

/// One volume.
pub async fn get(conn: &mut Conn, id: VolumeId) -> Result<Option<Volume>> {
    let row = query("SELECT * FROM volume WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// The volumes of a VM, the root volume first, then by device.
pub async fn of_vm(conn: &mut Conn, vm: VmId) -> Result<Vec<Volume>> {
    Ok(of_vms(conn, &[vm]).await?.remove(&vm).unwrap_or_default())
}

/// The same for some VMs.
pub(super) async fn of_vms(conn: &mut Conn, vms: &[VmId]) -> Result<HashMap<VmId, Vec<Volume>>> {
    let mut of_vm: HashMap<VmId, Vec<Volume>> = HashMap::with_capacity(vms.len());
    for row in rows_in(conn, "SELECT * FROM volume WHERE vm_id", vms.iter(), "ORDER BY vm_id, device").await? {
        of_vm.entry(row.parse("vm_id")?).or_default().push(from_row(&row)?);
    }
    for volumes in of_vm.values_mut() {
        volumes.sort_by_key(|volume| volume.kind != VolumeKind::Root);
    }
    Ok(of_vm)
}

/// The volumes that lie on a host.
pub async fn ids_on_host(conn: &mut Conn, host: HostId) -> Result<Vec<VolumeId>> {
    let rows = query("SELECT id FROM volume WHERE host_id = $1").bind(host.to_string()).fetch_all(conn).await?;
    rows.iter().map(|row| row.parse("id")).collect()
}

/// Those of `ids` that exist.
pub async fn known(conn: &mut Conn, ids: &[VolumeId]) -> Result<Vec<VolumeId>> {
    let mut known = Vec::with_capacity(ids.len());
    for ids in ids.chunks(500) {
        for row in rows_in(conn, "SELECT id FROM volume WHERE id", ids.iter(), "").await? {
            known.push(row.parse("id")?);
        }
    }
    Ok(known)
}

/// Moves a volume on from any of `from` to `to`, with what else changes. `invalid_state` when it is in
/// another state.
pub async fn change(tx: &mut Tx, id: VolumeId, from: &[VolumeState], to: &Change<'_>) -> Result<()> {
    let from: Vec<_> = from.iter().filter(|state| state.can_become(to.state)).collect();
    let allowed = !from.is_empty();
    let sql = format!(
        "UPDATE volume SET state = $2, host_id = $3, vm_id = $4, device = $5, version = version + 1
         WHERE id = $1 AND state IN ({})",
        places(6, from.len())
    );
    let mut query = query_of(sql)
        .bind(id.to_string())
        .bind(to.state.as_str())
        .bind(to.host_id.map(|id| id.to_string()))
        .bind(to.vm_id.map(|id| id.to_string()))
        .bind(to.device.map(str::to_string));
    for state in from {
        query = query.bind(state.as_str());
    }
    if allowed && query.execute(tx.conn()).await? == 1 {
        return Ok(());
    }
    let Some(now) = get(tx.conn(), id).await? else { return Err(Fault::not_found("volume", id).into()) };
    let text = format!("volume {} is {}: it cannot become {}", now.name, now.state, to.state);
    Err(Fault::new(Code::InvalidState, text).into())
}

/// Frees a data volume whose VM goes for good, whatever state it is in.
pub async fn release_from_vm(tx: &mut Tx, id: VolumeId) -> Result<()> {
    query("UPDATE volume SET state = $2, vm_id = NULL, device = NULL, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(VolumeState::Available.as_str())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Notes the host that a volume lies on, or is reached through.
pub async fn set_host(tx: &mut Tx, id: VolumeId, host: HostId) -> Result<()> {
    query("UPDATE volume SET host_id = $2, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(host.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// What a volume becomes.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Its state.
    pub state: VolumeState,
    /// The host whose disk it is on.
    pub host_id: Option<HostId>,
    /// The VM that it belongs to.
    pub vm_id: Option<VmId>,
    /// Its device name there.
    pub device: Option<&'a str>,
}

/// Removes a volume; a success when there is none.
pub async fn delete(tx: &mut Tx, id: VolumeId) -> Result<()> {
    query("DELETE FROM volume WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(())
}

/// Reads a volume, without links.
pub fn from_row(row: &Row) -> Result<Volume> {
    Ok(Volume {
        id: row.parse("id")?,
        name: row.parse("name")?,
        account_id: row.parse("account_id")?,
        kind: row.word("kind")?,
        state: row.parse("state")?,
        size: row.bytes("size")?,
        format: row.word::<DiskFormat>("format")?,
        storage_id: row.parse("storage_id")?,
        host_id: row.opt_parse("host_id")?,
        vm_id: row.opt_parse("vm_id")?,
        device: row.opt_text("device")?,
        image_id: row.opt_parse("image_id")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}
