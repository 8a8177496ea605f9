//! What Kring writes into a domain's metadata, so that the agent needs no store of its own: which VM
//! it is, the newest generation it was changed under, its volumes, its cards with their networks.
//!
//! After a reboot of the host the agent re-creates networks and leases from this alone.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;
use shared::api::network::NetworkKind;
use shared::id::{NetworkId, NicId, VmId, VolumeId};
use shared::wire::network::NetworkSpec;
use shared::wire::vm::{NicSpec, VmSpec};

use super::xml::Element;

/// XML namespace of the metadata; never changed, a new meaning gets a new number.
pub const NAMESPACE: &str = "https://kring.dev/xmlns/domain/1";
/// Prefix of the namespace in what Kring writes.
pub const PREFIX: &str = "kring";

/// A disk as the metadata remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The volume.
    pub volume_id: VolumeId,
    /// Device name in the guest.
    pub device: String,
}

/// What a domain says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The VM.
    pub vm_id: VmId,
    /// Its name when the domain was defined.
    pub name: String,
    /// Its host name, for DHCP and DNS.
    pub hostname: String,
    /// Newest generation of a command that changed it.
    pub generation: u64,
    /// Its disks.
    pub disks: Vec<DiskIdentity>,
    /// Its cards, each with its whole network.
    pub nics: Vec<NicSpec>,
}

/// Metadata that is not what Kring writes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not well-formed, or a field is missing.
    #[error("the domain's Kring metadata cannot be read")]
    Malformed(#[from] quick_xml::DeError),
    /// A field has no meaning.
    #[error("the domain's Kring metadata has a bad {field}: {value:?}")]
    BadField {
        /// The field.
        field: &'static str,
        /// What is in it.
        value: String,
    },
    /// A card is in a network that the metadata does not describe.
    #[error("the domain's Kring metadata does not describe network {0}")]
    UnknownNetwork(NetworkId),
}

/// Names of the elements, with or without the prefix.
struct Tags {
    vm: &'static str,
    disk: &'static str,
    nic: &'static str,
    network: &'static str,
}

impl Identity {
    /// The identity of a VM that is about to be defined.
    #[must_use]
    pub fn of(vm: &VmSpec, generation: u64) -> Self {
        let disks = vm.disks.iter();
        Self {
            vm_id: vm.vm_id,
            name: vm.name.clone(),
            hostname: vm.cloud_init.hostname.clone(),
            generation,
            disks: disks.map(|d| DiskIdentity { volume_id: d.volume.volume_id, device: d.device.clone() }).collect(),
            nics: vm.nics.clone(),
        }
    }

    /// The element as it stands in a domain's `<metadata>`.
    #[must_use]
    pub fn element(&self) -> Element {
        let tags = Tags { vm: "kring:vm", disk: "kring:disk", nic: "kring:nic", network: "kring:network" };
        let mut vm = self.tagged(&tags);
        vm.put_first("xmlns:kring", NAMESPACE);
        vm
    }

    /// The element as libvirt wants it to replace the one that a domain has: it adds the namespace
    /// and the prefix itself, and refuses an element that carries them.
    #[must_use]
    pub fn bare_element(&self) -> Element {
        self.tagged(&Tags { vm: "vm", disk: "disk", nic: "nic", network: "network" })
    }

    fn tagged(&self, tags: &Tags) -> Element {
        let mut networks: Vec<&NetworkSpec> = Vec::new();
        for nic in &self.nics {
            if !networks.iter().any(|n| n.network_id == nic.network.network_id) {
                networks.push(&nic.network);
            }
        }
        let disks =
            self.disks.iter().map(|d| Element::new(tags.disk).attr("volume", d.volume_id).attr("device", &d.device));
        let nics = self.nics.iter().map(|n| {
            Element::new(tags.nic)
                .attr("id", n.nic_id)
                .attr("mac", &n.mac)
                .attr("ip", n.ip)
                .attr("network", n.network.network_id)
        });
        Element::new(tags.vm)
            .attr("id", self.vm_id)
            .attr("name", &self.name)
            .attr("hostname", &self.hostname)
            .attr("generation", self.generation)
            .children(disks)
            .children(nics)
            .children(networks.into_iter().map(|network| network_element(tags.network, network)))
    }

    /// Reads what [`Identity::element`] wrote, as libvirt gives it back.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(xml: &str) -> Result<Self, Error> {
        let raw: RawVm = quick_xml::de::from_str(xml)?;
        let networks = raw.network.into_iter().map(RawNetwork::into_spec).collect::<Result<Vec<_>, _>>()?;
        let nics = raw
            .nic
            .into_iter()
            .map(|nic| {
                let network = networks.iter().find(|n| n.network_id == nic.network);
                let network = network.ok_or(Error::UnknownNetwork(nic.network))?.clone();
                Ok(NicSpec { nic_id: nic.id, mac: nic.mac, ip: nic.ip, network })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            vm_id: raw.id,
            name: raw.name,
            hostname: raw.hostname,
            generation: raw.generation,
            disks: raw.disk.into_iter().map(|d| DiskIdentity { volume_id: d.volume, device: d.device }).collect(),
            nics,
        })
    }
}

fn network_element(tag: &'static str, network: &NetworkSpec) -> Element {
    let dns: Vec<_> = network.dns.iter().map(Ipv4Addr::to_string).collect();
    let mut element = Element::new(tag)
        .attr("id", network.network_id)
        .attr("kind", network.kind.as_str())
        .attr("cidr", network.cidr)
        .attr("gateway", network.gateway.map(|ip| ip.to_string()).unwrap_or_default())
        .attr("service", network.service_address)
        .attr("dns", dns.join(" "))
        .attr("mtu", network.mtu);
    if let Some(uplink) = &network.uplink {
        element = element.attr("uplink", uplink);
    }
    if let Some(vlan) = network.vlan {
        element = element.attr("vlan", vlan);
    }
    element
}

#[derive(Deserialize)]
struct RawVm {
    #[serde(rename = "@id")]
    id: VmId,
    #[serde(rename = "@name")]
    name: String,
    #[serde(rename = "@hostname")]
    hostname: String,
    #[serde(rename = "@generation")]
    generation: u64,
    #[serde(default)]
    disk: Vec<RawDisk>,
    #[serde(default)]
    nic: Vec<RawNic>,
    #[serde(default)]
    network: Vec<RawNetwork>,
}

#[derive(Deserialize)]
struct RawDisk {
    #[serde(rename = "@volume")]
    volume: VolumeId,
    #[serde(rename = "@device")]
    device: String,
}

#[derive(Deserialize)]
struct RawNic {
    #[serde(rename = "@id")]
    id: NicId,
    #[serde(rename = "@mac")]
    mac: String,
    #[serde(rename = "@ip")]
    ip: Ipv4Addr,
    #[serde(rename = "@network")]
    network: NetworkId,
}

#[derive(Deserialize)]
struct RawNetwork {
    #[serde(rename = "@id")]
    id: NetworkId,
    #[serde(rename = "@kind")]
    kind: String,
    #[serde(rename = "@cidr")]
    cidr: Ipv4Net,
    #[serde(rename = "@gateway")]
    gateway: String,
    #[serde(rename = "@service")]
    service: Ipv4Addr,
    #[serde(rename = "@dns")]
    dns: String,
    #[serde(rename = "@mtu")]
    mtu: u16,
    #[serde(rename = "@uplink", default)]
    uplink: Option<String>,
    #[serde(rename = "@vlan", default)]
    vlan: Option<u16>,
}

impl RawNetwork {
    fn into_spec(self) -> Result<NetworkSpec, Error> {
        let kind = match self.kind.as_str() {
            "nat" => NetworkKind::Nat,
            "isolated" => NetworkKind::Isolated,
            "bridged" => NetworkKind::Bridged,
            _ => return Err(Error::BadField { field: "kind", value: self.kind }),
        };
        let dns = self.dns.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>();
        let dns = dns.map_err(|_| Error::BadField { field: "dns", value: self.dns })?;
        let gateway = match self.gateway.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Error::BadField { field: "gateway", value: self.gateway.clone() })?),
        };
        Ok(NetworkSpec {
            network_id: self.id,
            kind,
            cidr: self.cidr,
            gateway,
            service_address: self.service,
            dns,
            mtu: self.mtu,
            uplink: self.uplink,
            vlan: self.vlan,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::vm;

    #[test]
    fn an_identity_survives_the_way_through_libvirt() {
        let mut vm = vm();
        vm.name = "it's <\"&hostile".into();
        vm.nics.push(vm.nics[0].clone());
        let outside = &mut vm.nics[1].network;
        outside.network_id = NetworkId::new();
        (outside.kind, outside.gateway) = (NetworkKind::Bridged, None);
        (outside.uplink, outside.vlan) = (Some("eth1".into()), Some(7));
        let identity = Identity::of(&vm, u64::MAX);
        assert_eq!(Identity::parse(&identity.element().render()).unwrap(), identity);
    }

    #[test]
    fn the_prefix_does_not_matter() {
        let identity = Identity::of(&vm(), 3);
        let other = identity.bare_element().render();
        assert!(!other.contains("kring:vm") && !other.contains("xmlns"), "{other}");
        assert_eq!(Identity::parse(&other).unwrap(), identity);
    }

    #[test]
    fn what_kring_did_not_write_is_an_error_not_a_guess() {
        for bad in ["", "<vm/>", "<vm id=\"x\" name=\"\" hostname=\"\" generation=\"1\"/>"] {
            assert!(matches!(Identity::parse(bad), Err(Error::Malformed(_))), "{bad}");
        }
    }
}
