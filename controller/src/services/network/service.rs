//! Handlers of the network service.

use serde_json::json;
use shared::api::Link;
use shared::api::job::JobRef;
use shared::api::network::Network;
use shared::api::page::Page;
use shared::{Code, Error, Result};

use super::address::{check_dns, check_uplink, plan};
use super::delete::{Delete, State};
use crate::cx::Cx;
use crate::db;
use crate::messages::network::{CreateNetwork, DeleteNetwork, GetNetwork, ListNetworks};
use crate::services::{Context, announce, id_taken, owner, same_or_conflict};

/// Smallest packet that every IPv4 host takes (RFC 791), and the largest frames that switches carry.
const MTU: std::ops::RangeInclusive<u16> = 576..=9000;
const DEFAULT_MTU: u16 = 1500;

pub(super) async fn create(context: Context, cx: Cx, message: CreateNetwork) -> Result<Network> {
    let (body, account_id) = (message.body, owner(&cx)?);
    let plan = plan(body.kind, body.cidr, body.gateway)?;
    check_uplink(&body)?;
    check_dns(&body.dns)?;
    let mtu = body.mtu.unwrap_or(DEFAULT_MTU);
    if !MTU.contains(&mtu) {
        return Err(Error::invalid("mtu", format!("must be {} to {}", MTU.start(), MTU.end())));
    }
    let network = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let existing = db::network::get(tx.conn(), message.id).await?;
            let cluster_id = match (&existing, body.cluster_id) {
                // The only cluster then need not be the only one now.
                (Some(existing), None) => existing.cluster_id,
                (_, wanted) => db::cluster::named_or_only(tx.conn(), wanted).await?,
            };
            let network = Network {
                id: message.id,
                name: body.name,
                account_id,
                cluster_id,
                kind: body.kind,
                cidr: body.cidr,
                gateway: plan.gateway,
                service_address: plan.service_address,
                dns: body.dns,
                mtu,
                uplink: body.uplink,
                vlan: body.vlan,
                created_at: existing.as_ref().map_or(now, |n| n.created_at),
                links: Default::default(),
            };
            match existing {
                Some(existing) if existing.account_id != account_id => {
                    return Err(id_taken("network").into());
                }
                Some(existing) => {
                    same_or_conflict("network", &existing, &network)?;
                    return Ok(existing);
                }
                None => {}
            }
            db::cluster::lock(tx, cluster_id).await?;
            if let Some(other) = db::network::overlapping(tx.conn(), cluster_id, network.cidr).await? {
                return Err(overlaps(&network, &other).into());
            }
            if let Some(uplink) = &network.uplink
                && let Some(other) = db::network::on_segment(tx.conn(), cluster_id, uplink, network.vlan).await?
            {
                return Err(same_segment(&network, &other).into());
            }
            db::network::insert(tx, &network).await?;
            announce(tx, network.id, "created", Some(account_id), &json!({ "name": network.name }), now)?;
            Ok(network)
        })
    });
    Ok(with_links(network.await?))
}

/// What a tenant is told names the other network only when it is the tenant's own.
fn overlaps(network: &Network, other: &Network) -> Error {
    let whose = if other.account_id == network.account_id {
        format!("network {} ({})", other.name, other.cidr)
    } else {
        "another network of the cluster".to_string()
    };
    Error::new(Code::Conflict, format!("{} overlaps {whose}: choose another range", network.cidr))
}

/// Two networks on one segment would hear each other's guests.
fn same_segment(network: &Network, other: &Network) -> Error {
    let whose =
        if other.account_id == network.account_id { other.name.to_string() } else { "another network".to_string() };
    let text = match network.vlan {
        Some(vlan) => format!("{whose} lies on VLAN {vlan} of the uplink already: choose another VLAN"),
        None => format!("{whose} lies on the uplink already: choose another uplink, or a VLAN on it"),
    };
    Error::new(Code::Conflict, text)
}

pub(super) async fn get(context: Context, _: Cx, message: GetNetwork) -> Result<Network> {
    let mut conn = context.deps.db.read().await?;
    let network = db::network::get(&mut conn, message.id).await?;
    network.map(with_links).ok_or_else(|| Error::not_found("network", message.id))
}

pub(super) async fn list(context: Context, cx: Cx, message: ListNetworks) -> Result<Page<Network>> {
    let page = context.deps.db.page(&db::network::LIST, message.params, cx.caller.scope()).await?;
    Ok(page.read(db::network::from_row)?.map(with_links))
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteNetwork) -> Result<JobRef> {
    context.engine.submit::<Delete>(&cx, owner(&cx)?, State::new(message.id)).await
}

fn with_links(mut network: Network) -> Network {
    let path = format!("/v1/networks/{}", network.id);
    network.links.insert("self".into(), Link::new("GET", path.as_str()));
    network.links.insert("delete".into(), Link::new("DELETE", path));
    network.links.insert("cluster".into(), Link::new("GET", format!("/v1/clusters/{}", network.cluster_id)));
    network
}
