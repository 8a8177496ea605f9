//! Reads of many VMs at a time, by whoever asks for one of them meanwhile.

use std::collections::HashMap;

use shared::api::vm::{Nic, Vm, VmState};
use shared::api::volume::Volume;
use shared::id::{HostId, VmId};
use shared::wire::vm::{PowerState, digest};

use super::super::gather::Found;
use super::super::row::rows_in;
use super::super::{Conn, Result, Row};
use super::{VmRow, from_row, row_from};

/// Some VMs as users see them, without links.
pub(in crate::db) async fn views(conn: &mut Conn, ids: &[VmId]) -> Result<Found<VmId, Vm>> {
    let head = "SELECT vm.*, nic.id AS nic_id, nic.network_id, nic.mac, nic.ip
        FROM vm LEFT JOIN nic ON nic.vm_id = vm.id WHERE vm.id";
    let mut found: Found<VmId, Vm> = HashMap::with_capacity(ids.len());
    for row in rows_in(conn, head, ids.iter(), "ORDER BY vm.id, nic.position").await? {
        let vm = found.entry(row.parse("id")?).or_insert_with(|| from_row(&row));
        if let Ok(seen) = vm {
            match crate::db::nic::joined(&row) {
                Ok(nic) => seen.nics.extend(nic),
                Err(error) => *vm = Err(error),
            }
        }
    }
    Ok(found)
}

/// A VM with its cards and volumes.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The VM, without its network cards.
    pub row: VmRow,
    /// Its network cards, in order.
    pub nics: Vec<Nic>,
    /// Its volumes, the root volume first, then by device.
    pub volumes: Vec<Volume>,
}

/// Some VMs with all that their hosts need to know.
pub(in crate::db) async fn wholes(conn: &mut Conn, ids: &[VmId]) -> Result<Found<VmId, Whole>> {
    let rows = rows_in(conn, "SELECT * FROM vm WHERE id", ids.iter(), "").await?;
    let mut nics = crate::db::nic::of_vms(conn, ids).await?;
    let mut volumes = crate::db::volume::of_vms(conn, ids).await?;
    let whole = |row: &Row| {
        let id = row.parse("id")?;
        let (nics, volumes) = (nics.remove(&id).unwrap_or_default(), volumes.remove(&id).unwrap_or_default());
        Ok((id, row_from(row).map(|row| Whole { row, nics, volumes })))
    };
    rows.iter().map(whole).collect()
}

/// A VM, and whether a job is about to change it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The VM, without its network cards.
    pub row: VmRow,
    /// A job about it has not ended.
    pub busy: bool,
}

/// Some VMs with whether jobs are at work on them.
pub(in crate::db) async fn watched(conn: &mut Conn, ids: &[VmId]) -> Result<Found<VmId, Watched>> {
    let head =
        "SELECT vm.*, (SELECT COUNT(*) FROM job WHERE job.resource_id = vm.id AND job.finished_at IS NULL) AS open_jobs
        FROM vm WHERE vm.id";
    let rows = rows_in(conn, head, ids.iter(), "").await?;
    let watched = |row: &Row| Ok(Watched { row: row_from(row)?, busy: row.int("open_jobs")? > 0 });
    rows.iter().map(|row| Ok((row.parse("id")?, watched(row)))).collect()
}

/// What hosts should answer to a ping when their VMs do what is written here. A host is missing on which a VM
/// is being changed: what is written of it may be undone.
pub(in crate::db) async fn digests(conn: &mut Conn, hosts: &[HostId]) -> Result<Found<HostId, u64>> {
    let mut found: Found<HostId, u64> = hosts.iter().map(|host| (*host, Ok(0))).collect();
    let head = "SELECT host_id, id, state FROM vm WHERE host_id";
    for row in rows_in(conn, head, hosts.iter(), "").await? {
        let (host, id, state): (HostId, VmId, VmState) = (row.parse("host_id")?, row.parse("id")?, row.word("state")?);
        match (adds(id, state), found.get_mut(&host)) {
            (Some(own), Some(Ok(sum))) => *sum = sum.wrapping_add(own),
            _ => drop(found.remove(&host)),
        }
    }
    Ok(found)
}

/// What a VM that nobody changes now adds to the digest of its host; `None` when there is no saying.
fn adds(id: VmId, state: VmState) -> Option<u64> {
    let power = match state {
        VmState::Running => PowerState::Running,
        VmState::Paused => PowerState::Paused,
        VmState::Stopped => PowerState::Stopped,
        VmState::Crashed => PowerState::Crashed,
        // It has no domain.
        VmState::Deleted => return Some(0),
        _ => return None,
    };
    Some(digest([(&id, &power)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::query;
    use crate::db::testing::{Seed, dbs};

    #[tokio::test]
    async fn a_host_should_answer_what_is_written_unless_it_is_being_changed() {
        for test in dbs().await {
            let (seed, db) = (Seed::planted(&test.db).await, &test.db);
            let host = seed.host.id;
            assert_eq!(db.digests.get(host).await.unwrap(), Some(0), "nothing is on it");
            let put = |states: &'static [&'static str]| {
                let seed = seed.clone();
                db.write(move |tx| {
                    Box::pin(async move {
                        let mut ids = Vec::new();
                        for state in states {
                            let id = seed.insert_vm(tx, &format!("vm-{state}")).await?;
                            query("UPDATE vm SET host_id = $2, state = $3 WHERE id = $1")
                                .bind(id.to_string())
                                .bind(seed.host.id.to_string())
                                .bind(*state)
                                .execute(tx.conn())
                                .await?;
                            ids.push(id);
                        }
                        Ok(ids)
                    })
                })
            };
            let ids = put(&["running", "stopped", "deleted"]).await.unwrap();
            let there = [(&ids[0], &PowerState::Running), (&ids[1], &PowerState::Stopped)];
            assert_eq!(db.digests.get(host).await.unwrap(), Some(digest(there)));
            put(&["deleting"]).await.unwrap();
            assert_eq!(db.digests.get(host).await.unwrap(), None);
        }
    }
}
