//! What the placement needs to know of hosts, in one query.

use shared::api::host::{HostAdminState, HostConnection};
use shared::id::{ClusterId, HostId, StorageId};
use shared::units::Bytes;

use super::row::RowExt;
use super::{Conn, Result};

/// A host as a place for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host_id: HostId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// What the operator wants of it.
    pub admin_state: HostAdminState,
    /// Whether it answers.
    pub connection: HostConnection,
    /// Architecture.
    pub arch: String,
    /// Virtual processors in all and reserved.
    pub vcpus: (u32, u32),
    /// Memory in all and reserved.
    pub memory: (Bytes, Bytes),
    /// Its storages.
    pub storages: Vec<PlaceStorage>,
}

/// A storage on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceStorage {
    /// The storage.
    pub storage_id: StorageId,
    /// Bytes in all, free, and reserved.
    pub total: Bytes,
    /// Bytes free.
    pub available: Bytes,
    /// Bytes reserved.
    pub reserved: Bytes,
}

/// Every host, with its storages.
pub async fn places(conn: &mut Conn) -> Result<Vec<Place>> {
    let rows = sqlx::query(
        "SELECT host.id, host.cluster_id, host.admin_state, host.connection, host.arch, host.vcpus_total, host.vcpus_reserved,
             host.memory_total, host.memory_reserved, storage_host.storage_id, storage_host.total, storage_host.available,
             storage_host.reserved
         FROM host LEFT JOIN storage_host ON storage_host.host_id = host.id
         ORDER BY host.id, storage_host.storage_id",
    )
    .fetch_all(conn)
    .await?;
    let mut places: Vec<Place> = Vec::new();
    for row in &rows {
        let host_id = row.parse("id")?;
        if places.last().is_none_or(|last| last.host_id != host_id) {
            places.push(Place {
                host_id,
                cluster_id: row.parse("cluster_id")?,
                admin_state: row.parse("admin_state")?,
                connection: row.parse("connection")?,
                arch: row.text("arch")?,
                vcpus: (row.count("vcpus_total")?, row.count("vcpus_reserved")?),
                memory: (row.bytes("memory_total")?, row.bytes("memory_reserved")?),
                storages: Vec::new(),
            });
        }
        if let (Some(storage_id), Some(place)) = (row.opt_parse("storage_id")?, places.last_mut()) {
            place.storages.push(PlaceStorage {
                storage_id,
                total: row.bytes("total")?,
                available: row.bytes("available")?,
                reserved: row.bytes("reserved")?,
            });
        }
    }
    Ok(places)
}
