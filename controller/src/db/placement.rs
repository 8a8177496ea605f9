//! What the placement needs to know of hosts.

use shared::api::host::{HostAdminState, HostConnection};
use shared::id::{ClusterId, HostId, StorageId};
use shared::units::Bytes;

use super::row::rows_in;
use super::storage::permille;
use super::{Conn, Result, Row, query_of};

/// What is to be placed.
#[derive(Clone, Debug)]
pub struct Request {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Size of the root volume.
    pub disk: Bytes,
    /// The storage of the root volume; any when absent.
    pub storage: Option<StorageId>,
    /// Storages that the host must reach, each with the bytes that are needed there; for a VM whose volumes are
    /// made already.
    pub on: Vec<(StorageId, Bytes)>,
    /// The cluster of the networks, when there are any.
    pub cluster: Option<ClusterId>,
    /// A certain host.
    pub host: Option<HostId>,
    /// A host that is not meant.
    pub not_host: Option<HostId>,
    /// Interfaces that the host must have, for networks that lie on a segment outside.
    pub uplinks: Vec<String>,
    /// Volume bytes that may be promised per byte of a storage.
    pub storage_overcommit: f64,
}

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
    /// Whether it can run what images are made for.
    pub arch: Arch,
    /// Names of its network interfaces, each with a space before and after it.
    pub nics: String,
    /// Virtual processors in all and reserved.
    pub vcpus: (u32, u32),
    /// Memory in all and reserved.
    pub memory: (Bytes, Bytes),
    /// Its storages.
    pub storages: Vec<PlaceStorage>,
}

/// Architecture of a host, as far as placement asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// That of the images.
    X86,
    /// Any other.
    Other,
}

/// A storage on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceStorage {
    /// The storage.
    pub storage_id: StorageId,
    /// Bytes in all.
    pub total: Bytes,
    /// Bytes reserved.
    pub reserved: Bytes,
}

const COLUMNS: &str =
    "host.id, host.cluster_id, host.admin_state, host.connection, host.arch, host.nics, host.vcpus_total,
    host.vcpus_reserved, host.memory_total, host.memory_reserved, storage_host.storage_id,
    CASE WHEN storage.kind = 'shared' THEN storage.total ELSE storage_host.total END AS total,
    CASE WHEN storage.kind = 'shared' THEN storage.reserved ELSE storage_host.reserved END AS reserved
    FROM host LEFT JOIN storage_host ON storage_host.host_id = host.id AND storage_host.error IS NULL
    LEFT JOIN storage ON storage.id = storage_host.storage_id";

/// Gives every host with its storages to `visit`, one after the other, and holds no more than one.
pub async fn each(conn: &mut Conn, mut visit: impl FnMut(Place)) -> Result<()> {
    let sql = format!("SELECT {COLUMNS} ORDER BY host.id, storage_host.storage_id");
    // The text is made of pieces of this program.
    let mut last: Option<Place> = None;
    let read = query_of(sql).each(conn, |row| {
        if let Some(whole) = add(&mut last, &row)? {
            visit(whole);
        }
        Ok(())
    });
    read.await?;
    last.into_iter().for_each(visit);
    Ok(())
}

/// Some hosts with their storages; those that are no more are missing.
pub async fn of_hosts(conn: &mut Conn, hosts: &[HostId]) -> Result<Vec<Place>> {
    let head = format!("SELECT {COLUMNS} WHERE host.id");
    let (mut found, mut last) = (Vec::with_capacity(hosts.len()), None);
    for row in rows_in(conn, &head, hosts.iter(), "ORDER BY host.id, storage_host.storage_id").await? {
        found.extend(add(&mut last, &row)?);
    }
    found.extend(last);
    Ok(found)
}

/// Adds a row to the host that it belongs to; answers the one before when that is whole.
fn add(last: &mut Option<Place>, row: &Row) -> Result<Option<Place>> {
    let host_id = row.parse("id")?;
    let whole = last.take_if(|place| place.host_id != host_id);
    let place = match last {
        Some(place) => place,
        None => last.insert(Place {
            host_id,
            cluster_id: row.parse("cluster_id")?,
            admin_state: row.parse("admin_state")?,
            connection: row.parse("connection")?,
            arch: if row.text("arch")? == "x86_64" { Arch::X86 } else { Arch::Other },
            nics: row.text("nics")?,
            vcpus: (row.count("vcpus_total")?, row.count("vcpus_reserved")?),
            memory: (row.bytes("memory_total")?, row.bytes("memory_reserved")?),
            storages: Vec::new(),
        }),
    };
    if let Some(storage_id) = row.opt_parse("storage_id")? {
        place.storages.push(PlaceStorage { storage_id, total: row.bytes("total")?, reserved: row.bytes("reserved")? });
    }
    Ok(whole)
}

/// Hosts that take the request now, those with the most memory left first, at most `most`. It looks at
/// every host.
pub async fn fitting(conn: &mut Conn, request: &Request, most: u32) -> Result<Vec<(HostId, StorageId)>> {
    let mut sql = String::from(
        "SELECT host.id, storage_host.storage_id FROM host
         JOIN storage_host ON storage_host.host_id = host.id AND storage_host.error IS NULL
         JOIN storage ON storage.id = storage_host.storage_id
         WHERE host.connection = 'connected' AND host.admin_state = 'enabled' AND host.arch = 'x86_64'
             AND host.vcpus_reserved + $1 <= host.vcpus_total AND host.memory_reserved + $2 <= host.memory_total
             AND $3 <= CASE WHEN storage.kind = 'shared' THEN storage.total / 1000 * $4 - storage.reserved
                 ELSE storage_host.total / 1000 * $4 - storage_host.reserved END
             AND ($8 = '' OR storage.id = $8)
             AND ($5 = '' OR host.cluster_id = $5) AND ($6 = '' OR host.id = $6)",
    );
    for n in 9..9 + request.uplinks.len() {
        // What is replaced is there.
        sql.push_str(&format!(" AND REPLACE(host.nics, ${n}, '') <> host.nics"));
    }
    sql.push_str(" ORDER BY host.memory_total - host.memory_reserved DESC, host.id LIMIT $7");
    // The text is made of pieces of this program and `$n`.
    let mut query = query_of(sql)
        .bind(i64::from(request.vcpus))
        .bind(request.memory.as_i64())
        .bind(request.disk.as_i64())
        .bind(permille(request.storage_overcommit))
        .bind(request.cluster.map(|id| id.to_string()).unwrap_or_default())
        .bind(request.host.map(|id| id.to_string()).unwrap_or_default())
        .bind(i64::from(most))
        .bind(request.storage.map(|id| id.to_string()).unwrap_or_default());
    for uplink in &request.uplinks {
        query = query.bind(format!(" {uplink} "));
    }
    let rows = query.fetch_all(conn).await?;
    rows.iter().map(|row| Ok((row.parse("id")?, row.parse("storage_id")?))).collect()
}
