//! Networks: what VMs are connected to.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::id::{AccountId, ClusterId, NetworkId};
use crate::name::Name;
use crate::time::Timestamp;

/// Kinds of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// A bridge on the host whose guests reach the outside by the host's address.
    Nat,
    /// A bridge on the host without a way out.
    Isolated,
    /// A segment outside that the hosts are plugged into: guests on several hosts share it.
    Bridged,
}

impl NetworkKind {
    /// The word as JSON has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Isolated => "isolated",
            Self::Bridged => "bridged",
        }
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique in the account.
    pub name: Name,
    /// Its owner.
    pub account_id: AccountId,
    /// The cluster whose hosts have it.
    pub cluster_id: ClusterId,
    /// Its kind.
    pub kind: NetworkKind,
    /// Addresses.
    #[schema(value_type = String, example = "10.77.0.0/24")]
    pub cidr: Ipv4Net,
    /// Address of the gateway: for `nat` the host's bridge, for `bridged` a router outside, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// Address of the DHCP, DNS and metadata service on each host.
    #[schema(value_type = String)]
    pub service_address: Ipv4Addr,
    /// Resolvers that guests' questions are passed on to; empty: the host's own.
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet.
    pub mtu: u16,
    /// For `bridged`: the interface of the hosts that the network lies on, such as `eth1` or `br0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// For `bridged`: the VLAN on the uplink, 1 to 4094; untagged when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `POST /v1/networks`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<NetworkId>,
    /// Name, unique in the account.
    pub name: Name,
    /// Its kind.
    pub kind: NetworkKind,
    /// Addresses, /8 to /29, from a private range.
    #[schema(value_type = String, example = "10.77.0.0/24")]
    pub cidr: Ipv4Net,
    /// The cluster; default the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<ClusterId>,
    /// Gateway; default the first address, and for `bridged` none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// Resolvers that guests' questions are passed on to; empty: the host's own.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet, 576 to 9000; default 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// For `bridged`: the interface of the hosts that the network lies on, such as `eth1` or `br0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// For `bridged`: the VLAN on the uplink, 1 to 4094; untagged when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}
