//! Messages of the network service.

use shared::api::job::JobRef;
use shared::api::network::{CreateNetwork as Body, Network};
use shared::id::NetworkId;

use super::{changes, creates, reads};

reads!("network", "network.GetNetwork" => GetNetwork(NetworkId), "network.ListNetworks" => ListNetworks, Network, Read);
creates!("network.CreateNetwork" to "network" => Network, CreateNetwork(NetworkId, Body), Create);
changes!(
    /// Removes a network that no VM is in, from the hosts too.
    "network.DeleteNetwork" to "network" => JobRef, DeleteNetwork(NetworkId), Write
);
