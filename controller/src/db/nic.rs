//! Rows of network cards: who has which address.

use std::collections::HashMap;

use shared::api::vm::Nic;
use shared::id::{NetworkId, VmId};
use sqlx::any::AnyRow;
use sqlx::{Any, QueryBuilder};

use super::row::RowExt;
use super::{Conn, Result, Tx};

/// Adds a card. Its address must have been leased in the same transaction.
pub async fn insert(tx: &mut Tx, vm: VmId, position: usize, nic: &Nic) -> Result<()> {
    sqlx::query("INSERT INTO nic (id, vm_id, network_id, position, mac, ip) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(nic.id.to_string())
        .bind(vm.to_string())
        .bind(nic.network_id.to_string())
        .bind(position as i64)
        .bind(nic.mac.clone())
        .bind(nic.ip.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// The cards of a VM, in order.
pub async fn of_vm(conn: &mut Conn, vm: VmId) -> Result<Vec<Nic>> {
    let rows = sqlx::query("SELECT * FROM nic WHERE vm_id = $1 ORDER BY position")
        .bind(vm.to_string())
        .fetch_all(conn)
        .await?;
    rows.iter().map(from_row).collect()
}

/// The cards of some VMs, each in order; at most a page of VMs at once.
pub async fn of_vms(conn: &mut Conn, vms: &[VmId]) -> Result<HashMap<VmId, Vec<Nic>>> {
    let mut of_vm: HashMap<VmId, Vec<Nic>> = HashMap::with_capacity(vms.len());
    if vms.is_empty() {
        return Ok(of_vm);
    }
    let mut query = QueryBuilder::<Any>::new("SELECT * FROM nic WHERE vm_id IN (");
    let mut ids = query.separated(", ");
    for vm in vms {
        ids.push_bind(vm.to_string());
    }
    query.push(") ORDER BY vm_id, position");
    for row in query.build().fetch_all(conn).await? {
        of_vm.entry(row.parse("vm_id")?).or_default().push(from_row(&row)?);
    }
    Ok(of_vm)
}

/// How many cards are in a network.
pub async fn count_in(conn: &mut Conn, network: NetworkId) -> Result<i64> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM nic WHERE network_id = $1").bind(network.to_string()).fetch_one(conn).await?;
    row.int("n")
}

/// Removes the cards of a VM; their addresses are free again.
pub async fn delete_of(tx: &mut Tx, vm: VmId) -> Result<()> {
    sqlx::query("DELETE FROM nic WHERE vm_id = $1").bind(vm.to_string()).execute(tx.conn()).await?;
    Ok(())
}

fn from_row(row: &AnyRow) -> Result<Nic> {
    Ok(Nic {
        id: row.parse("id")?,
        network_id: row.parse("network_id")?,
        mac: row.text("mac")?,
        ip: row.parse("ip")?,
    })
}
