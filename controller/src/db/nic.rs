//! Rows of network cards: who has which address.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use shared::api::vm::Nic;
use shared::id::{NetworkId, NicId, VmId};

use super::row::rows_in;
use super::{Conn, Result, Row, Tx, query};

/// Adds a card with an address of the network: `wanted`, or the next free one. Its hardware address is one
/// of those that `mac` gives.
///
/// # Errors
/// `not_found`; `invalid_state` for a network that is being deleted; `invalid_request` for a wanted
/// address that no guest can have; `in_use` for one that another guest has; `exhausted`.
pub async fn add(
    tx: &mut Tx,
    vm: VmId,
    position: usize,
    (network_id, wanted): (NetworkId, Option<Ipv4Addr>),
    mac: impl Fn() -> String + Send,
) -> Result<Nic> {
    let network = super::network::hold(tx, network_id).await?;
    let card = |ip| Nic { id: NicId::new(), network_id, mac: mac(), ip };
    if wanted.is_none()
        && let Some(ip) = network.likely()
    {
        let nic = card(ip);
        if insert(tx, vm, position, &nic).await? {
            return Ok(nic);
        }
    }
    let ip = match wanted {
        Some(wanted) => {
            network.check(tx, wanted).await?;
            wanted
        }
        None => network.next_free(tx).await?,
    };
    loop {
        // The address is free, so what another card has is the hardware address.
        let nic = card(ip);
        if insert(tx, vm, position, &nic).await? {
            return Ok(nic);
        }
    }
}

/// False when another card has its address or its hardware address.
async fn insert(tx: &mut Tx, vm: VmId, position: usize, nic: &Nic) -> Result<bool> {
    let sql = "INSERT INTO nic (id, vm_id, network_id, position, mac, ip) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT DO NOTHING";
    let rows = query(sql)
        .bind(nic.id.to_string())
        .bind(vm.to_string())
        .bind(nic.network_id.to_string())
        .bind(position as i64)
        .bind(nic.mac.clone())
        .bind(nic.ip.to_string())
        .execute(tx.conn())
        .await?;
    Ok(rows == 1)
}

/// The cards of a VM, in order.
pub async fn of_vm(conn: &mut Conn, vm: VmId) -> Result<Vec<Nic>> {
    let rows =
        query("SELECT * FROM nic WHERE vm_id = $1 ORDER BY position").bind(vm.to_string()).fetch_all(conn).await?;
    rows.iter().map(from_row).collect()
}

/// The cards of some VMs, each in order; at most a page of VMs at once.
pub async fn of_vms(conn: &mut Conn, vms: &[VmId]) -> Result<HashMap<VmId, Vec<Nic>>> {
    let mut of_vm: HashMap<VmId, Vec<Nic>> = HashMap::with_capacity(vms.len());
    if vms.is_empty() {
        return Ok(of_vm);
    }
    for row in rows_in(conn, "SELECT * FROM nic WHERE vm_id", vms.iter(), "ORDER BY vm_id, position").await? {
        of_vm.entry(row.parse("vm_id")?).or_default().push(from_row(&row)?);
    }
    Ok(of_vm)
}

/// Interfaces that a host must have for the networks of a VM's cards.
pub async fn uplinks(conn: &mut Conn, vm: VmId) -> Result<Vec<String>> {
    let rows = query(
        "SELECT DISTINCT network.uplink FROM nic JOIN network ON network.id = nic.network_id
         WHERE nic.vm_id = $1 AND network.uplink IS NOT NULL",
    )
    .bind(vm.to_string())
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| row.text("uplink")).collect()
}

/// How many cards are in a network.
pub async fn count_in(conn: &mut Conn, network: NetworkId) -> Result<i64> {
    let row =
        query("SELECT COUNT(*) AS n FROM nic WHERE network_id = $1").bind(network.to_string()).fetch_one(conn).await?;
    row.int("n")
}

/// Removes the cards of a VM; their addresses are free again.
pub async fn delete_of(tx: &mut Tx, vm: VmId) -> Result<()> {
    query("DELETE FROM nic WHERE vm_id = $1").bind(vm.to_string()).execute(tx.conn()).await?;
    Ok(())
}

/// The card in a row of `vm LEFT JOIN nic`, where its id is called `nic_id`.
pub(super) fn joined(row: &Row) -> Result<Option<Nic>> {
    row.opt_parse("nic_id")?.map(|id| with_id(id, row)).transpose()
}

fn from_row(row: &Row) -> Result<Nic> {
    with_id(row.parse("id")?, row)
}

fn with_id(id: NicId, row: &Row) -> Result<Nic> {
    Ok(Nic { id, network_id: row.parse("network_id")?, mac: row.text("mac")?, ip: row.parse("ip")? })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::db::testing::{Seed, dbs};

    #[tokio::test]
    async fn cards_are_read_for_one_vm_and_for_many_in_order() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let network_id = seed.network.id;
            let insert_both = db.write(move |tx| {
                async move {
                    let mut vms = Vec::new();
                    for name in ["a", "b"] {
                        let vm = seed.insert_vm(tx, name).await?;
                        for position in [1, 0] {
                            add(tx, vm, position, (network_id, None), || NicId::new().to_string()).await?;
                        }
                        vms.push(vm);
                    }
                    Ok(vms)
                }
                .boxed()
            });
            let vms = insert_both.await.unwrap();
            let mut conn = db.read().await.unwrap();
            let all = of_vms(&mut conn, &vms).await.unwrap();
            for vm in &vms {
                let nics = of_vm(&mut conn, *vm).await.unwrap();
                assert!(nics.len() == 2 && nics[0].ip > nics[1].ip, "{nics:?}");
                assert_eq!(all[vm], nics);
            }
            assert_eq!((all.len(), count_in(&mut conn, network_id).await.unwrap()), (2, 4));
            assert!(of_vms(&mut conn, &[]).await.unwrap().is_empty());
        }
    }
}
