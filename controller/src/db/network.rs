//! Rows of networks, and the leasing of their addresses.
//!
//! An address is leased in the transaction that inserts the card which has it ([`super::nic::add`]). The
//! network's row is held until its end, so leases of one network are made one at a time; the unique key of
//! the cards is the final judge.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use shared::api::network::Network;
use shared::id::{ClusterId, NetworkId};
use shared::{Code, Error as Fault};

use super::filter::Field;
use super::gather::Found;
use super::page::ListSpec;
use super::row::{found_in, json, name_taken, places, word};
use super::{Conn, Result, Row, Tx, query, query_of};

/// Lists of networks.
pub const LIST: ListSpec = ListSpec {
    columns: "network.*",
    from: "network",
    only: None,
    fields: &[
        Field::id("id", "network.id").sortable(),
        Field::text("name", "network.name").sortable(),
        Field::id("account_id", "network.account_id"),
        Field::id("cluster_id", "network.cluster_id"),
        Field::text("cluster.name", "cluster.name").through("cluster", "cluster.id", "network.cluster_id"),
        Field::text("kind", "network.kind"),
        Field::text("cidr", "network.cidr"),
        Field::text("gateway", "network.gateway"),
        Field::int("mtu", "network.mtu"),
        Field::text("uplink", "network.uplink"),
        Field::int("vlan", "network.vlan"),
        Field::time("created_at", "network.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("network.account_id"),
};

/// Adds a network; `name_taken` when the account has one of that name. A foreign key stands in the way
/// when there is no such account or cluster.
pub async fn insert(tx: &mut Tx, network: &Network) -> Result<()> {
    let done = query(
        "INSERT INTO network (id, name, account_id, cluster_id, kind, cidr, gateway, service_address, dns, mtu, next_ip, state,
             created_at, uplink, vlan)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'ready', $12, $13, $14)",
    )
    .bind(network.id.to_string())
    .bind(network.name.to_string())
    .bind(network.account_id.to_string())
    .bind(network.cluster_id.to_string())
    .bind(word(&network.kind))
    .bind(network.cidr.to_string())
    .bind(network.gateway.map(|ip| ip.to_string()).unwrap_or_default())
    .bind(network.service_address.to_string())
    .bind(json(&network.dns)?)
    .bind(i64::from(network.mtu))
    .bind(i64::from(u32::from(network.cidr.network()) + 1))
    .bind(network.created_at.ms())
    .bind(network.uplink.clone())
    .bind(network.vlan.map(i64::from))
    .execute(tx.conn())
    .await;
    name_taken(done, "network", &network.name)
}

/// Some networks.
pub(super) async fn some(conn: &mut Conn, ids: &[NetworkId]) -> Result<Found<NetworkId, Network>> {
    found_in(conn, "SELECT * FROM network WHERE id", ids, from_row).await
}

/// One network.
pub async fn get(conn: &mut Conn, id: NetworkId) -> Result<Option<Network>> {
    let row = query("SELECT * FROM network WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// A network of the cluster that shares addresses with `cidr`. Hold the cluster before asking.
pub async fn overlapping(conn: &mut Conn, cluster: ClusterId, cidr: Ipv4Net) -> Result<Option<Network>> {
    let rows = query("SELECT * FROM network WHERE cluster_id = $1 ORDER BY id")
        .bind(cluster.to_string())
        .fetch_all(conn)
        .await?;
    for row in &rows {
        let other: Ipv4Net = row.parse("cidr")?;
        if other.contains(&cidr) || cidr.contains(&other) {
            return from_row(row).map(Some);
        }
    }
    Ok(None)
}

/// The network of the cluster that lies on the same segment outside. Hold the cluster before asking.
pub async fn on_segment(
    conn: &mut Conn,
    cluster: ClusterId,
    uplink: &str,
    vlan: Option<u16>,
) -> Result<Option<Network>> {
    let row = query("SELECT * FROM network WHERE cluster_id = $1 AND uplink = $2 AND COALESCE(vlan, 0) = $3")
        .bind(cluster.to_string())
        .bind(uplink.to_string())
        .bind(i64::from(vlan.unwrap_or(0)))
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(from_row).transpose()
}

/// Lets no new card into a network that has none, before it is deleted. `not_found`, `in_use` or, when
/// that is so already, `invalid_state`.
pub async fn close(tx: &mut Tx, id: NetworkId) -> Result<Network> {
    // First the write, which holds the row: from then on no lease can come in between.
    let row = query("UPDATE network SET state = 'deleting' WHERE id = $1 AND state = 'ready' RETURNING *")
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?;
    let Some(row) = row else {
        return Err(match get(tx.conn(), id).await? {
            None => Fault::not_found("network", id).into(),
            Some(network) => being_deleted(&network).into(),
        });
    };
    let network = from_row(&row)?;
    let user = query("SELECT vm.name FROM nic JOIN vm ON vm.id = nic.vm_id WHERE nic.network_id = $1 LIMIT 1")
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?;
    match user {
        None => Ok(network),
        Some(vm) => {
            let text = format!(
                "VM {} is in network {}: delete and expunge the VMs in it first",
                vm.text("name")?,
                network.name
            );
            Err(Fault::new(Code::InUse, text).into())
        }
    }
}

/// Lets cards into a network again.
pub async fn reopen(tx: &mut Tx, id: NetworkId) -> Result<()> {
    query("UPDATE network SET state = 'ready' WHERE id = $1 AND state = 'deleting'")
        .bind(id.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Removes a network; false when there is none.
pub async fn delete(tx: &mut Tx, id: NetworkId) -> Result<bool> {
    let rows = query("DELETE FROM network WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// A network whose row is held until the commit, to lease addresses of it.
pub struct Leasing {
    network: Network,
    range: Range,
    hint: u32,
}

/// Holds a network.
///
/// # Errors
/// `not_found`; `invalid_state` for a network that is being deleted.
pub async fn hold(tx: &mut Tx, id: NetworkId) -> Result<Leasing> {
    let row = query("UPDATE network SET next_ip = next_ip + 1 WHERE id = $1 RETURNING *")
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?;
    let Some(row) = row else {
        return Err(Fault::not_found("network", id).into());
    };
    let network = from_row(&row)?;
    if row.text("state")? != "ready" {
        return Err(being_deleted(&network).into());
    }
    let range = Range::of(&network);
    let hint = u32::try_from(row.int("next_ip")? - 1).unwrap_or(range.first);
    Ok(Leasing { network, range, hint })
}

impl Leasing {
    /// The address that is probably free; `None` when there is no telling without a look.
    pub(super) fn likely(&self) -> Option<Ipv4Addr> {
        self.range.allows(self.hint).then(|| self.hint.into())
    }

    /// The next free address. Addresses rotate, so one that was given back is not given out again at once.
    ///
    /// # Errors
    /// `exhausted`.
    pub(super) async fn next_free(&self, tx: &mut Tx) -> Result<Ipv4Addr> {
        let ip = next_free(tx, &self.network, &self.range, self.hint).await?;
        query("UPDATE network SET next_ip = $2 WHERE id = $1")
            .bind(self.network.id.to_string())
            .bind(i64::from(u32::from(ip)) + 1)
            .execute(tx.conn())
            .await?;
        Ok(ip)
    }

    /// Checks an address that a user wants.
    ///
    /// # Errors
    /// `invalid_request` for an address that no guest can have; `in_use` for one that another guest has.
    pub(super) async fn check(&self, tx: &mut Tx, wanted: Ipv4Addr) -> Result<()> {
        let Self { network, range, .. } = self;
        if !range.allows(wanted.into()) {
            let text = format!(
                "{wanted} is not for guests: give one of {} to {}, but neither the gateway{} nor the service address {}",
                Ipv4Addr::from(range.first),
                Ipv4Addr::from(range.last),
                network.gateway.map(|ip| format!(" {ip}")).unwrap_or_default(),
                network.service_address
            );
            return Err(Fault::invalid("ip", text).into());
        }
        if !taken_of(tx.conn(), network.id, &[wanted]).await?.is_empty() {
            let text =
                format!("address {wanted} of network {} belongs to another VM: choose another one", network.name);
            return Err(Fault::new(Code::InUse, text).into());
        }
        Ok(())
    }
}

fn being_deleted(network: &Network) -> Fault {
    Fault::new(Code::InvalidState, format!("network {} is being deleted", network.name))
}

/// Addresses that guests may have.
struct Range {
    first: u32,
    last: u32,
    reserved: [u32; 2],
}

impl Range {
    fn of(network: &Network) -> Self {
        Self {
            first: u32::from(network.cidr.network()) + 1,
            last: u32::from(network.cidr.broadcast()) - 1,
            // Without a gateway nothing more is kept than the service address.
            reserved: [network.gateway.unwrap_or(network.service_address).into(), network.service_address.into()],
        }
    }

    fn allows(&self, ip: u32) -> bool {
        (self.first..=self.last).contains(&ip) && !self.reserved.contains(&ip)
    }

    /// Every address that guests may have, from `hint` on and then from the first.
    fn from(&self, hint: u32) -> impl Iterator<Item = Ipv4Addr> {
        let hint = if (self.first..=self.last).contains(&hint) { hint } else { self.first };
        (hint..=self.last).chain(self.first..hint).filter(|ip| self.allows(*ip)).map(Ipv4Addr::from)
    }
}

/// Addresses that are looked at first; enough unless the network is nearly full.
const AT_FIRST: usize = 32;

async fn next_free(tx: &mut Tx, network: &Network, range: &Range, hint: u32) -> Result<Ipv4Addr> {
    let near: Vec<_> = range.from(hint).take(AT_FIRST).collect();
    let taken = taken_of(tx.conn(), network.id, &near).await?;
    if let Some(ip) = near.iter().find(|ip| !taken.contains(ip)) {
        return Ok(*ip);
    }
    let taken = all_taken(tx.conn(), network.id).await?;
    range.from(hint).find(|ip| !taken.contains(ip)).ok_or_else(|| {
        let text = format!(
            "network {} has no free address left: expunge a VM that is in it, or use another network",
            network.name
        );
        Fault::new(Code::Exhausted, text).into()
    })
}

/// Which of `ips` are taken.
async fn taken_of(conn: &mut Conn, id: NetworkId, ips: &[Ipv4Addr]) -> Result<HashSet<Ipv4Addr>> {
    if ips.is_empty() {
        return Ok(HashSet::new());
    }
    let sql = format!("SELECT ip FROM nic WHERE network_id = $1 AND ip IN ({})", places(2, ips.len()));
    // The text is made of pieces of this program and `$n`.
    let mut query = query_of(sql).bind(id.to_string());
    for ip in ips {
        query = query.bind(ip.to_string());
    }
    query.fetch_all(conn).await?.iter().map(|row| row.parse("ip")).collect()
}

async fn all_taken(conn: &mut Conn, id: NetworkId) -> Result<HashSet<Ipv4Addr>> {
    let rows = query("SELECT ip FROM nic WHERE network_id = $1").bind(id.to_string()).fetch_all(conn).await?;
    rows.iter().map(|row| row.parse("ip")).collect()
}

/// Reads a network, without links.
pub fn from_row(row: &Row) -> Result<Network> {
    Ok(Network {
        id: row.parse("id")?,
        name: row.parse("name")?,
        account_id: row.parse("account_id")?,
        cluster_id: row.parse("cluster_id")?,
        kind: row.word("kind")?,
        cidr: row.parse("cidr")?,
        gateway: match row.text("gateway")?.as_str() {
            "" => None,
            _ => Some(row.parse("gateway")?),
        },
        service_address: row.parse("service_address")?,
        dns: row.json("dns")?,
        mtu: row.number("mtu")?,
        uplink: row.opt_text("uplink")?,
        vlan: row.opt_number("vlan")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}

#[cfg(test)]
mod tests;
