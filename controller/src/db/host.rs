//! Rows of hosts and of their reserved processors and memory.

use shared::api::host::{Host, HostAdminState, HostCapacity, HostConnection, HostFacts};
use shared::id::{ClusterId, HostId};
use shared::name::Name;
use shared::time::Timestamp;
use shared::units::Bytes;
use uuid::Uuid;

use super::filter::Field;
use super::gather::Found;
use super::page::ListSpec;
use super::row::{json, name_taken, rows_in};
use super::{Conn, Result, Row, Tx, query};
use crate::agent_client::HostRef;

/// Lists of hosts.
pub const LIST: ListSpec = ListSpec {
    columns: "host.*",
    from: "host",
    only: None,
    fields: &[
        Field::id("id", "host.id").sortable(),
        Field::text("name", "host.name").sortable(),
        Field::id("cluster_id", "host.cluster_id"),
        Field::text("cluster.name", "cluster.name").through("cluster", "cluster.id", "host.cluster_id"),
        Field::text("address", "host.address"),
        Field::text("admin_state", "host.admin_state"),
        Field::text("connection", "host.connection").sortable(),
        Field::int("capacity.vcpus_total", "host.vcpus_total"),
        Field::int("capacity.vcpus_reserved", "host.vcpus_reserved"),
        Field::bytes("capacity.memory_total", "host.memory_total"),
        Field::bytes("capacity.memory_reserved", "host.memory_reserved"),
        Field::time("created_at", "host.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: None,
};

/// A host as the controller needs it beside what users see.
#[derive(Clone, Debug)]
pub struct HostRow {
    /// As users see it, without links.
    pub host: Host,
    /// Boot id of its kernel when it was last compared.
    pub boot_id: Option<Uuid>,
    /// Id of its agent process when it was last compared.
    pub agent_id: Option<Uuid>,
    /// For compare-and-set.
    pub version: i64,
}

impl HostRow {
    /// How to reach its agent.
    #[must_use]
    pub fn reference(&self) -> HostRef {
        HostRef { id: self.host.id, address: self.host.address.clone() }
    }
}

/// Adds a host that has joined, or takes a known one up again with its new address and facts.
pub async fn join(tx: &mut Tx, host: &Host) -> Result<()> {
    tx.touch_reach(host.id);
    let done = query(
        "INSERT INTO host (id, name, cluster_id, address, admin_state, connection, connection_reason, arch, vcpus_total,
             vcpus_reserved, memory_total, memory_reserved, facts, created_at, nics, version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, 0, $11, $12, $13, 0)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, address = excluded.address, connection = excluded.connection,
             connection_reason = excluded.connection_reason, arch = excluded.arch, vcpus_total = excluded.vcpus_total,
             memory_total = excluded.memory_total, facts = excluded.facts, nics = excluded.nics, version = host.version + 1",
    )
    .bind(host.id.to_string())
    .bind(host.name.to_string())
    .bind(host.cluster_id.to_string())
    .bind(host.address.clone())
    .bind(host.admin_state.as_str())
    .bind(host.connection.as_str())
    .bind(host.connection_reason.clone())
    .bind(host.facts.arch.clone())
    .bind(i64::from(host.capacity.vcpus_total))
    .bind(host.capacity.memory_total.as_i64())
    .bind(json(&host.facts)?)
    .bind(host.created_at.ms())
    .bind(nics(&host.facts))
    .execute(tx.conn())
    .await;
    name_taken(done, "host", &host.name)
}

/// The names of a host's network interfaces as the placement looks for them.
fn nics(facts: &HostFacts) -> String {
    facts.nics.iter().fold(String::from(" "), |all, nic| all + &nic.name + " ")
}

/// One host.
pub async fn get(conn: &mut Conn, id: HostId) -> Result<Option<HostRow>> {
    let row = query("SELECT * FROM host WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(row_from).transpose()
}

/// How a host is reached, and what answered there when it was last compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The host.
    pub id: HostId,
    /// `address:port` of its agent.
    pub address: String,
    /// Whether it answers.
    pub connection: HostConnection,
    /// Boot id of its kernel.
    pub boot_id: Option<Uuid>,
    /// Id of its agent process.
    pub agent_id: Option<Uuid>,
}

/// How the hosts after a certain one are reached, in order of their ids.
pub async fn reach_after(conn: &mut Conn, after: Option<HostId>, max: u32) -> Result<Vec<Reach>> {
    let rows = query("SELECT id, address, connection, boot_id, agent_id FROM host WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after.map(|id| id.to_string()).unwrap_or_default())
        .bind(i64::from(max))
        .fetch_all(conn)
        .await?;
    rows.iter().map(reach_from).collect()
}

/// How some hosts are reached. One that is missing is not there.
pub async fn reach_of(conn: &mut Conn, hosts: &[HostId]) -> Result<Vec<Reach>> {
    let head = "SELECT id, address, connection, boot_id, agent_id FROM host WHERE id";
    let rows = rows_in(conn, head, hosts.iter(), "").await?;
    rows.iter().map(reach_from).collect()
}

/// The same, by id.
pub(super) async fn reaches(conn: &mut Conn, hosts: &[HostId]) -> Result<Found<HostId, Reach>> {
    Ok(reach_of(conn, hosts).await?.into_iter().map(|reach| (reach.id, Ok(reach))).collect())
}

fn reach_from(row: &Row) -> Result<Reach> {
    Ok(Reach {
        id: row.parse("id")?,
        address: row.text("address")?,
        connection: row.word("connection")?,
        boot_id: row.opt_parse("boot_id")?,
        agent_id: row.opt_parse("agent_id")?,
    })
}

/// Hosts of a cluster that answer, whatever the operator wants of them.
pub async fn connected(conn: &mut Conn, cluster: ClusterId) -> Result<Vec<HostRef>> {
    let rows = query("SELECT id, address FROM host WHERE connection = 'connected' AND cluster_id = $1 ORDER BY id")
        .bind(cluster.to_string())
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| Ok(HostRef { id: row.parse("id")?, address: row.text("address")? })).collect()
}

/// Hosts that answer and take new work.
pub async fn accepting(conn: &mut Conn) -> Result<Vec<HostRef>> {
    let sql = "SELECT id, address FROM host WHERE connection = 'connected' AND admin_state = 'enabled' ORDER BY id";
    let rows = query(sql).fetch_all(conn).await?;
    rows.iter().map(|row| Ok(HostRef { id: row.parse("id")?, address: row.text("address")? })).collect()
}

/// Sets whether a host answers, when it is still in the state `from`. False when it is not.
pub async fn set_connection(
    tx: &mut Tx,
    id: HostId,
    from: HostConnection,
    to: HostConnection,
    reason: Option<String>,
) -> Result<bool> {
    tx.touch_reach(id);
    let rows = query(
        "UPDATE host SET connection = $3, connection_reason = $4, version = version + 1 WHERE id = $1 AND connection = $2",
    )
    .bind(id.to_string())
    .bind(from.as_str())
    .bind(to.as_str())
    .bind(reason)
    .execute(tx.conn())
    .await?;
    Ok(rows == 1)
}

/// Writes down what a comparison found.
pub async fn set_facts(
    tx: &mut Tx,
    id: HostId,
    facts: &HostFacts,
    capacity: (u32, Bytes),
    now: Timestamp,
) -> Result<()> {
    tx.touch_host(id);
    query(
        "UPDATE host SET facts = $2, arch = $3, vcpus_total = $4, memory_total = $5, last_seen_at = $6,
             nics = $7, version = version + 1 WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(json(facts)?)
    .bind(facts.arch.clone())
    .bind(i64::from(capacity.0))
    .bind(capacity.1.as_i64())
    .bind(now.ms())
    .bind(nics(facts))
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Notes which life of a host's kernel and agent was compared.
pub async fn set_process(tx: &mut Tx, id: HostId, (boot_id, agent_id): (Uuid, Uuid), now: Timestamp) -> Result<()> {
    tx.touch_reach(id);
    query("UPDATE host SET boot_id = $2, agent_id = $3, last_seen_at = $4, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(boot_id.to_string())
        .bind(agent_id.to_string())
        .bind(now.ms())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Notes that a host answered.
pub async fn set_last_seen(tx: &mut Tx, id: HostId, now: Timestamp) -> Result<()> {
    query("UPDATE host SET last_seen_at = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(now.ms())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Renames a host or changes what the operator wants of it.
pub async fn update(tx: &mut Tx, id: HostId, name: &Name, admin_state: HostAdminState) -> Result<()> {
    tx.touch_host(id);
    let done = query("UPDATE host SET name = $2, admin_state = $3, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(name.to_string())
        .bind(admin_state.as_str())
        .execute(tx.conn())
        .await;
    name_taken(done, "host", name)
}

/// Reserves processors and memory. False when they are not there any more, or when the host takes no
/// new VMs; the check and the reservation are one statement, so two callers cannot both have the last.
pub async fn reserve(tx: &mut Tx, id: HostId, vcpus: u32, memory: Bytes, new_vm: bool) -> Result<bool> {
    tx.touch_host(id);
    let rows = query(
        "UPDATE host SET vcpus_reserved = vcpus_reserved + $2, memory_reserved = memory_reserved + $3
         WHERE id = $1 AND vcpus_reserved + $2 <= vcpus_total AND memory_reserved + $3 <= memory_total
             AND connection = 'connected' AND (admin_state = 'enabled' OR ($4 = 0 AND admin_state = 'disabled'))",
    )
    .bind(id.to_string())
    .bind(i64::from(vcpus))
    .bind(memory.as_i64())
    .bind(i64::from(new_vm))
    .execute(tx.conn())
    .await?;
    Ok(rows == 1)
}

/// Reserves without asking whether there is room: for a VM that runs there already.
pub async fn reserve_anyway(tx: &mut Tx, id: HostId, vcpus: u32, memory: Bytes) -> Result<()> {
    release(tx, id, -i64::from(vcpus), -memory.as_i64()).await
}

/// Gives reserved processors and memory back.
pub async fn release(tx: &mut Tx, id: HostId, vcpus: i64, memory: i64) -> Result<()> {
    tx.touch_host(id);
    query("UPDATE host SET vcpus_reserved = vcpus_reserved - $2, memory_reserved = memory_reserved - $3 WHERE id = $1")
        .bind(id.to_string())
        .bind(vcpus)
        .bind(memory)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Removes a host; false when there is none. A foreign key stands in the way while it has VMs or volumes.
pub async fn delete(tx: &mut Tx, id: HostId) -> Result<bool> {
    tx.touch_reach(id);
    // What lies on a shared storage is reached by another host from now on.
    query(
        "UPDATE volume SET host_id = (SELECT MIN(s.host_id) FROM storage_host s
             WHERE s.storage_id = volume.storage_id AND s.host_id <> $1 AND s.error IS NULL)
         WHERE host_id = $1 AND vm_id IS NULL AND EXISTS (SELECT 1 FROM storage_host s JOIN storage ON storage.id = s.storage_id
             WHERE s.storage_id = volume.storage_id AND s.host_id <> $1 AND s.error IS NULL AND storage.kind = 'shared')",
    )
    .bind(id.to_string())
    .execute(tx.conn())
    .await?;
    for sql in
        ["DELETE FROM storage_host WHERE host_id = $1 AND reserved = 0", "DELETE FROM image_host WHERE host_id = $1"]
    {
        query(sql).bind(id.to_string()).execute(tx.conn()).await?;
    }
    let rows = query("DELETE FROM host WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// Reads a host, without links.
pub fn from_row(row: &Row) -> Result<Host> {
    Ok(Host {
        id: row.parse("id")?,
        name: row.parse("name")?,
        cluster_id: row.parse("cluster_id")?,
        address: row.text("address")?,
        admin_state: row.parse("admin_state")?,
        connection: row.parse("connection")?,
        connection_reason: row.opt_text("connection_reason")?,
        capacity: HostCapacity {
            vcpus_total: row.count("vcpus_total")?,
            vcpus_reserved: row.count("vcpus_reserved")?,
            memory_total: row.bytes("memory_total")?,
            memory_reserved: row.bytes("memory_reserved")?,
        },
        facts: row.json("facts")?,
        last_seen_at: row.opt_time("last_seen_at")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}

fn row_from(row: &Row) -> Result<HostRow> {
    Ok(HostRow {
        host: from_row(row)?,
        boot_id: row.opt_parse("boot_id")?,
        agent_id: row.opt_parse("agent_id")?,
        version: row.int("version")?,
    })
}
