//! Networks on a host.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::api::network::NetworkKind;
use crate::id::{NetworkId, ResourceId};
use crate::wire::Empty;

/// A network that must be set up: its bridge, its namespace with DHCP, DNS and metadata, and for
/// `nat` its way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The network; its bridge and namespace are named after it.
    pub network_id: NetworkId,
    /// Its kind.
    pub kind: NetworkKind,
    /// Addresses.
    pub cidr: Ipv4Net,
    /// Gateway; for `nat` the bridge has it, for `isolated` nobody, for `bridged` a router outside, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Address of DHCP and DNS.
    pub service_address: Ipv4Addr,
    /// Resolvers that questions are passed on to; empty: the host's own.
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet.
    pub mtu: u16,
    /// For `bridged`: the host's interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// For `bridged`: the VLAN on it; untagged when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// Sets a network up; repairs what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureNetwork {
    /// The network.
    pub network: NetworkSpec,
}

/// Removes a network from the host; a success when it is not there. Refused with `in_use` while a
/// domain on the host has a card in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteNetwork {
    /// The network.
    pub network_id: NetworkId,
}

super::agent_commands! {
    EnsureNetwork = "network/ensure" => Empty, |c| c.network.network_id.uuid();
    DeleteNetwork = "network/delete" => Empty, |c| c.network_id.uuid();
}
