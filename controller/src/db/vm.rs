//! Rows of VMs. State changes are compare-and-set, and the reservation of a host's processors and
//! memory moves in the same transaction: the flag `holds_compute` says whether it is held.

mod gathered;
mod state;

use shared::api::image::Firmware;
use shared::api::vm::{Vm, VmState};
use shared::id::{HostId, VmId};
use shared::name::Name;
use shared::time::Timestamp;
use shared::units::Bytes;
use shared::{Code, Error as Fault};

use super::filter::Field;
use super::page::ListSpec;
use super::row::{json, name_taken, word};
use super::{Conn, Result, Row, Tx, query};
pub use gathered::{Watched, Whole};
pub(super) use gathered::{digests, views, watched, wholes};
pub use state::change;

/// Lists of VMs.
pub const LIST: ListSpec = ListSpec {
    columns: "vm.*",
    from: "vm",
    only: None,
    fields: &[
        Field::id("id", "vm.id").sortable(),
        Field::text("name", "vm.name").sortable(),
        Field::text("state", "vm.state").sortable(),
        Field::text("hostname", "vm.hostname"),
        Field::int("vcpus", "vm.vcpus").sortable(),
        Field::bytes("memory", "vm.memory").sortable(),
        Field::id("account_id", "vm.account_id"),
        Field::id("instance_type_id", "vm.instance_type_id"),
        Field::id("image_id", "vm.image_id"),
        Field::text("image.name", "image.name").through("image", "image.id", "vm.image_id"),
        Field::id("host_id", "vm.host_id"),
        Field::text("host.name", "host.name").through("host", "host.id", "vm.host_id"),
        Field::text("nics.ip", "nic.ip").through("nic", "nic.vm_id", "vm.id"),
        Field::text("nics.mac", "nic.mac").through("nic", "nic.vm_id", "vm.id"),
        Field::id("nics.network_id", "nic.network_id").through("nic", "nic.vm_id", "vm.id"),
        Field::int("auto_start", "vm.auto_start"),
        Field::time("state_since", "vm.state_since").sortable(),
        Field::text("last_known_state", "vm.last_known_state"),
        Field::time("deleted_at", "vm.deleted_at"),
        Field::time("created_at", "vm.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("vm.account_id"),
};

/// A VM as the controller needs it beside what users see.
#[derive(Clone, Debug)]
pub struct VmRow {
    /// As users see it, without its network cards and links.
    pub vm: Vm,
    /// Whether processors and memory of its host are reserved for it.
    pub holds_compute: bool,
    /// Public ssh keys.
    pub ssh_keys: Vec<String>,
    /// cloud-init user data.
    pub user_data: Option<String>,
    /// The host that it is moving to, until it is known where it is.
    pub moving_to: Option<HostId>,
    /// For compare-and-set.
    pub version: i64,
}

/// Adds a VM; `name_taken` when the name is.
pub async fn insert(tx: &mut Tx, row: &VmRow, generation: u64) -> Result<()> {
    let vm = &row.vm;
    let rows = query(
        "INSERT INTO vm (id, name, account_id, state, state_since, hostname, vcpus, memory, instance_type_id, image_id,
             root_volume_id, firmware, host_id, holds_compute, ssh_keys, user_data, created_at, generation, auto_start, version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, 0)",
    )
    .bind(vm.id.to_string())
    .bind(vm.name.to_string())
    .bind(vm.account_id.to_string())
    .bind(vm.state.as_str())
    .bind(vm.state_since.ms())
    .bind(vm.hostname.clone())
    .bind(i64::from(vm.vcpus))
    .bind(vm.memory.as_i64())
    .bind(vm.instance_type_id.map(|id| id.to_string()))
    .bind(vm.image_id.to_string())
    .bind(vm.root_volume_id.to_string())
    .bind(word(&vm.firmware))
    .bind(vm.host_id.map(|id| id.to_string()))
    .bind(i64::from(row.holds_compute))
    .bind(json(&row.ssh_keys)?)
    .bind(row.user_data.clone())
    .bind(vm.created_at.ms())
    .bind(generation as i64)
    .bind(i64::from(vm.auto_start))
    .execute(tx.conn())
    .await;
    name_taken(rows, "vm", &vm.name)
}

/// One VM, without its network cards.
pub async fn get(conn: &mut Conn, id: VmId) -> Result<Option<VmRow>> {
    let row = query("SELECT * FROM vm WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(row_from).transpose()
}

/// The same, or `not_found`.
pub async fn require(conn: &mut Conn, id: VmId) -> Result<VmRow> {
    get(conn, id).await?.ok_or_else(|| Fault::not_found("vm", id).into())
}

/// A VM as a host is compared with it.
#[derive(Clone, Debug)]
pub struct OnHost {
    /// The VM.
    pub id: VmId,
    /// What it does.
    pub state: VmState,
    /// It is on its way to another host.
    pub moving: bool,
    /// Version of its row.
    pub version: i64,
}

/// Every VM on a host.
pub async fn on_host(conn: &mut Conn, host: HostId) -> Result<Vec<OnHost>> {
    let rows = query("SELECT id, state, moving_to, version FROM vm WHERE host_id = $1")
        .bind(host.to_string())
        .fetch_all(conn)
        .await?;
    let read = |row: &Row| {
        let moving = row.opt_text("moving_to")?.is_some();
        Ok(OnHost { id: row.parse("id")?, state: row.word("state")?, moving, version: row.int("version")? })
    };
    rows.iter().map(read).collect()
}

/// The VMs on a host that run, or may do so in a moment: name and state.
pub async fn active_on_host(conn: &mut Conn, host: HostId) -> Result<Vec<(VmId, Name, VmState)>> {
    let rows = query(
        "SELECT id, name, state FROM vm WHERE host_id = $1
             AND state NOT IN ('stopped', 'deleted', 'expunging', 'deleting', 'crashed') ORDER BY id",
    )
    .bind(host.to_string())
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| Ok((row.parse("id")?, row.parse("name")?, row.parse("state")?))).collect()
}

/// The VMs on a host that are to be started because they ran when it went down.
pub async fn start_due(conn: &mut Conn, host: HostId) -> Result<Vec<VmId>> {
    let rows = query("SELECT id FROM vm WHERE host_id = $1 AND start_due = 1 AND state = 'stopped' ORDER BY id")
        .bind(host.to_string())
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| row.parse("id")).collect()
}

/// Notes that a VM is to be started as soon as its host is ready; any change of its state forgets it.
pub async fn set_start_due(tx: &mut Tx, id: VmId) -> Result<()> {
    query("UPDATE vm SET start_due = 1 WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(())
}

/// VMs that were deleted before a time and whose host can be told, with when that was, oldest first, from behind
/// `after` on.
pub async fn deleted_before(
    conn: &mut Conn,
    before: Timestamp,
    after: (Timestamp, Option<VmId>),
    max: u32,
) -> Result<Vec<(Timestamp, VmId)>> {
    let rows = query(
        "SELECT deleted_at, id FROM vm WHERE deleted_at >= $1 AND (deleted_at, id) > ($1, $2) AND deleted_at <= $3 AND state = 'deleted'
             AND (host_id IS NULL
                  OR EXISTS (SELECT 1 FROM host WHERE host.id = vm.host_id AND host.connection = 'connected'))
         ORDER BY deleted_at, id LIMIT $4",
    )
    .bind(after.0.ms())
    .bind(after.1.map(|id| id.to_string()).unwrap_or_default())
    .bind(before.ms())
    .bind(i64::from(max))
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| Ok((row.time("deleted_at")?, row.parse("id")?))).collect()
}

/// Puts a VM on a host where its processors and memory were just reserved.
pub async fn place(tx: &mut Tx, id: VmId, host: HostId) -> Result<()> {
    query("UPDATE vm SET host_id = $2, holds_compute = 1, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(host.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Puts a VM on a host, or takes it off.
pub async fn set_host(tx: &mut Tx, id: VmId, host: Option<HostId>) -> Result<()> {
    query("UPDATE vm SET host_id = $2, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(host.map(|host| host.to_string()))
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Notes which host a VM is moving to, or that it is known where it is.
pub async fn set_moving_to(tx: &mut Tx, id: VmId, host: Option<HostId>) -> Result<()> {
    query("UPDATE vm SET moving_to = $2, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(host.map(|host| host.to_string()))
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Reserves the VM's processors and memory on its host, unless that is rows. `no_host_fits` when they
/// are not there.
pub async fn hold_compute(tx: &mut Tx, id: VmId, new_vm: bool) -> Result<()> {
    let row = require(tx.conn(), id).await?;
    let Some(host) = row.vm.host_id else {
        return Err(Fault::internal(format_args!("vm {id} has no host to hold compute on")).into());
    };
    if !row.holds_compute {
        if !super::host::reserve(tx, host, row.vm.vcpus, row.vm.memory, new_vm).await? {
            let text = format!(
                "host {host} has no room for {} vcpus and {} any more, or takes no VMs now",
                row.vm.vcpus, row.vm.memory
            );
            return Err(Fault::new(Code::NoHostFits, text).into());
        }
        set_holds(tx, id, true).await?;
    }
    Ok(())
}

/// Notes that the VM runs on its host whether or not there is room: found there by a comparison.
pub async fn hold_compute_anyway(tx: &mut Tx, id: VmId) -> Result<()> {
    let row = require(tx.conn(), id).await?;
    if let Some(host) = row.vm.host_id
        && !row.holds_compute
    {
        super::host::reserve_anyway(tx, host, row.vm.vcpus, row.vm.memory).await?;
        set_holds(tx, id, true).await?;
    }
    Ok(())
}

/// Gives the VM's processors and memory back, unless that is rows.
pub async fn drop_compute(tx: &mut Tx, id: VmId) -> Result<()> {
    let Some(row) = get(tx.conn(), id).await? else { return Ok(()) };
    if let Some(host) = row.vm.host_id
        && row.holds_compute
    {
        super::host::release(tx, host, i64::from(row.vm.vcpus), row.vm.memory.as_i64()).await?;
        set_holds(tx, id, false).await?;
    }
    Ok(())
}

/// Notes whether compute is held; the reservation itself is made or given back beside it.
pub async fn set_holds(tx: &mut Tx, id: VmId, holds: bool) -> Result<()> {
    query("UPDATE vm SET holds_compute = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(i64::from(holds))
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Renames or resizes a VM, when it is still in the version that was looked at.
pub async fn update(tx: &mut Tx, before: &VmRow, after: &Changed) -> Result<()> {
    let done = query(
        "UPDATE vm SET name = $3, vcpus = $4, memory = $5, auto_start = $6, version = version + 1
         WHERE id = $1 AND version = $2",
    )
    .bind(before.vm.id.to_string())
    .bind(before.version)
    .bind(after.name.to_string())
    .bind(i64::from(after.vcpus))
    .bind(after.memory.as_i64())
    .bind(i64::from(after.auto_start))
    .execute(tx.conn())
    .await;
    if let Ok(0) = done {
        return Err(Fault::new(
            Code::InvalidState,
            format!("vm {} has just changed: look at it and try again", before.vm.name),
        )
        .into());
    }
    name_taken(done, "vm", &after.name)
}

/// What users may change of a VM.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Its name.
    pub name: Name,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Bytes,
    /// Whether it is started again when its host has restarted.
    pub auto_start: bool,
}

/// Sets or clears the time of deletion; the name is free while it is set.
pub async fn set_deleted_at(tx: &mut Tx, id: VmId, name: &Name, at: Option<Timestamp>) -> Result<()> {
    let done = query("UPDATE vm SET deleted_at = $2, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(at.map(Timestamp::ms))
        .execute(tx.conn())
        .await;
    name_taken(done, "vm", name)
}

/// Puts a VM that was just recovered back among the deleted: the only way from `stopped` to `deleted`.
pub async fn restore_deleted(tx: &mut Tx, id: VmId, now: Timestamp) -> Result<()> {
    query("UPDATE vm SET state = 'deleted', state_since = $2, deleted_at = $2, version = version + 1 WHERE id = $1")
        .bind(id.to_string())
        .bind(now.ms())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Removes a VM; a success when there is none.
pub async fn delete(tx: &mut Tx, id: VmId) -> Result<()> {
    query("DELETE FROM vm WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(())
}

/// Reads a VM as users see it, without its network cards and links.
pub fn from_row(row: &Row) -> Result<Vm> {
    Ok(Vm {
        id: row.parse("id")?,
        name: row.parse("name")?,
        account_id: row.parse("account_id")?,
        state: row.parse("state")?,
        hostname: row.text("hostname")?,
        vcpus: row.count("vcpus")?,
        memory: row.bytes("memory")?,
        instance_type_id: row.opt_parse("instance_type_id")?,
        image_id: row.parse("image_id")?,
        root_volume_id: row.parse("root_volume_id")?,
        firmware: row.word::<Firmware>("firmware")?,
        host_id: row.opt_parse("host_id")?,
        auto_start: row.int("auto_start")? != 0,
        nics: Vec::new(),
        state_since: row.time("state_since")?,
        last_known_state: row.opt_parse("last_known_state")?,
        deleted_at: row.opt_time("deleted_at")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}

fn row_from(row: &Row) -> Result<VmRow> {
    Ok(VmRow {
        vm: from_row(row)?,
        holds_compute: row.int("holds_compute")? != 0,
        ssh_keys: row.json("ssh_keys")?,
        user_data: row.opt_text("user_data")?,
        moving_to: row.opt_parse("moving_to")?,
        version: row.int("version")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Seed, dbs};
    use super::*;

    #[tokio::test]
    async fn deleted_vms_should_each_be_on_one_page() {
        for test in dbs().await {
            let (seed, db) = (Seed::planted(&test.db).await, &test.db);
            let inserted = db.write(move |tx| {
                Box::pin(async move {
                    for (n, deleted_at) in
                        [(0, Some(7_i64)), (1, Some(5)), (2, Some(7)), (3, Some(7)), (4, Some(9)), (5, None)]
                    {
                        let id = seed.insert_vm(tx, &format!("vm-{n}")).await?;
                        query("UPDATE vm SET state = $2, deleted_at = $3 WHERE id = $1")
                            .bind(id.to_string())
                            .bind(if deleted_at.is_some() { "deleted" } else { "stopped" })
                            .bind(deleted_at)
                            .execute(tx.conn())
                            .await?;
                    }
                    Ok(())
                })
            });
            inserted.await.unwrap();
            let (mut pages, mut after) = (Vec::new(), (Timestamp(0), None));
            loop {
                let page = deleted_before(&mut db.read().await.unwrap(), Timestamp(8), after, 2).await.unwrap();
                let Some((at, id)) = page.last() else { break };
                after = (*at, Some(*id));
                pages.push(page.iter().map(|(at, _)| at.ms()).collect::<Vec<_>>());
            }
            assert_eq!(pages, [vec![5, 7], vec![7, 7]]);
        }
    }
}
