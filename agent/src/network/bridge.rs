//! The links of a network: its bridge on the host, and the veth that joins the namespace to it.

use std::fmt::Write as _;
use std::io;

use nix::net::if_::if_nametoindex;
use serde::Deserialize;
use shared::api::network::NetworkKind;
use shared::id::{NetworkId, ResourceId};
use shared::wire::network::NetworkSpec;

use super::namespace::Namespace;
use super::{Error, METADATA_ADDRESS, Tools, uplink};

/// The names of a network's parts on the host, none longer than the 15 characters of a link's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// What makes them unique on the host.
    pub suffix: String,
}

impl Names {
    /// The `attempt`-th choice for a network: first the end of its id, which is random in UUIDv7; the
    /// others are for a host where that is taken.
    #[must_use]
    pub fn choice(network_id: NetworkId, attempt: u32) -> Self {
        let id = network_id.uuid().simple().to_string();
        let first = u32::from_str_radix(&id[id.len() - 8..], 16).unwrap_or_default();
        // An odd step visits every number once.
        Self { suffix: format!("{:08x}", first.wrapping_add(attempt.wrapping_mul(0x9e37_79b1))) }
    }

    /// The bridge.
    #[must_use]
    pub fn bridge(&self) -> String {
        format!("kr-{}", self.suffix)
    }

    /// The host's end of the veth.
    #[must_use]
    pub fn veth(&self) -> String {
        format!("kv-{}", self.suffix)
    }

    /// The port to a segment outside, where the uplink itself is not the port.
    #[must_use]
    pub fn port(&self) -> String {
        format!("ku-{}", self.suffix)
    }

    /// The other end of the port's cable, in a bridge of the operator's.
    #[must_use]
    pub fn plug(&self) -> String {
        format!("kp-{}", self.suffix)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        format!("kring-{}", self.suffix)
    }

    /// A fixed, locally administered address for the bridge. Without one it would take the lowest of
    /// its ports', and guests would lose their gateway whenever a VM comes or goes.
    #[must_use]
    pub fn bridge_mac(&self) -> String {
        self.mac("02:6b")
    }

    /// The address of the service in the namespace: the same on every host, so that a guest which has moved
    /// finds the service of its new host at once.
    #[must_use]
    pub fn service_mac(&self) -> String {
        self.mac("02:6c")
    }

    fn mac(&self, begin: &str) -> String {
        let mut mac = String::from(begin);
        for pair in self.suffix.as_bytes().chunks(2) {
            let _ = write!(mac, ":{}", String::from_utf8_lossy(pair));
        }
        mac
    }
}

/// The text by which a bridge says whose it is.
#[must_use]
pub fn alias(network_id: NetworkId) -> String {
    format!("kring:{network_id}")
}

/// A link as `ip -json` tells.
#[derive(Debug, Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    ifalias: Option<String>,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    family: String,
    local: String,
    prefixlen: u8,
    #[serde(default)]
    scope: String,
}

/// Whether a link of this name is in the namespace of this process.
#[must_use]
pub fn exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// The network whose bridge has this name; `None` when there is no such link, an empty text when it
/// is nobody's.
pub async fn owner(name: &str, tools: &Tools<'_>) -> Result<Option<String>, Error> {
    if !exists(name) {
        return Ok(None);
    }
    let link = show(name, tools).await?;
    Ok(Some(link.and_then(|l| l.ifalias).unwrap_or_default()))
}

async fn show(name: &str, tools: &Tools<'_>) -> Result<Option<Link>, Error> {
    let output = tools.cmd("ip").args(["-json", "address", "show", "dev", name]).run_any(tools.cancel).await?;
    Ok(parse_links(&output.text())?.into_iter().find(|l| l.ifname == name))
}

/// The bridges of Kring, with what they say whose they are.
pub async fn all(tools: &Tools<'_>) -> Result<Vec<(String, String)>, Error> {
    let output = tools.cmd("ip").args(["-json", "link", "show"]).run(tools.cancel).await?;
    let links = parse_links(&output.text())?.into_iter();
    let ours = links.filter_map(|l| {
        let alias = l.ifalias?;
        alias.starts_with("kring:").then_some((l.ifname, alias))
    });
    Ok(ours.collect())
}

fn parse_links(text: &str) -> Result<Vec<Link>, Error> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    // `ip` prints an empty object for every link that a filter leaves out.
    let all: Vec<serde_json::Value> = serde_json::from_str(text).map_err(Error::Ip)?;
    let named = all.into_iter().filter(|link| link.get("ifname").is_some());
    named.map(serde_json::from_value).collect::<Result<_, _>>().map_err(Error::Ip)
}

/// Makes the bridge and the veth, and repairs what differs. `fresh` says that the namespace was made
/// just now, so that a veth that exists leads elsewhere; `moved` that it may have other addresses.
pub async fn ensure(
    spec: &NetworkSpec,
    names: &Names,
    namespace: &Namespace,
    fresh: bool,
    moved: bool,
    tools: &Tools<'_>,
) -> Result<(), Error> {
    let (bridge, veth) = (names.bridge(), names.veth());
    let mut batch = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        let _ = writeln!(batch, "{args}");
    };
    if exists(&bridge) {
        for wrong in addresses(&bridge, tools).await?.iter().filter(|a| Some(*a) != bridge_address(spec).as_ref()) {
            line(format_args!("address del {wrong} dev {bridge}"));
        }
    } else {
        line(format_args!(
            "link add name {bridge} address {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            names.bridge_mac()
        ));
    }
    line(format_args!("link set dev {bridge} alias {}", alias(spec.network_id)));
    if fresh && exists(&veth) {
        line(format_args!("link del dev {veth}"));
    }
    if fresh || !exists(&veth) {
        line(format_args!("link add name {veth} type veth peer name eth0 netns {}", namespace.path().display()));
    }
    line(format_args!("link set dev {veth} master {bridge} mtu {}", spec.mtu));
    let isolated = if spec.kind == NetworkKind::Bridged { "on" } else { "off" };
    line(format_args!("link set dev {veth} type bridge_slave isolated {isolated}"));
    line(format_args!("link set dev {veth} up"));
    line(format_args!("link set dev {bridge} mtu {} up", spec.mtu));
    if let Some(address) = bridge_address(spec) {
        line(format_args!("address replace {address} dev {bridge}"));
    }
    tools.cmd("ip").args(["-batch", "-"]).stdin(batch).run(tools.cancel).await?;
    for link in [&bridge, &veth] {
        no_ipv6(link)?;
    }
    uplink::ensure(spec, names, moved, tools).await?;
    inside(spec, names, namespace, moved, tools).await
}

/// The address that the host has on the bridge: the gateway, where there is one.
fn bridge_address(spec: &NetworkSpec) -> Option<String> {
    match spec.kind {
        NetworkKind::Nat => spec.gateway.map(|gateway| format!("{gateway}/{}", spec.cidr.prefix_len())),
        NetworkKind::Isolated | NetworkKind::Bridged => None,
    }
}

async fn addresses(link: &str, tools: &Tools<'_>) -> Result<Vec<String>, Error> {
    let link = show(link, tools).await?;
    let v4 = link.map(|l| l.addr_info).unwrap_or_default().into_iter().filter(|a| a.family == "inet");
    Ok(v4.map(|a| format!("{}/{}", a.local, a.prefixlen)).collect())
}

/// Addresses of an interface by which others reach the host: not those of the link alone.
pub async fn reachable_addresses(link: &str, tools: &Tools<'_>) -> Result<Vec<String>, Error> {
    let link = show(link, tools).await?;
    let global = link.map(|l| l.addr_info).unwrap_or_default().into_iter().filter(|a| a.scope == "global");
    Ok(global.map(|a| format!("{}/{}", a.local, a.prefixlen)).collect())
}

/// Sets the namespace's end up: the service's addresses and, for `nat`, the way out for DNS.
async fn inside(
    spec: &NetworkSpec,
    names: &Names,
    namespace: &Namespace,
    moved: bool,
    tools: &Tools<'_>,
) -> Result<(), Error> {
    let forget = if moved { "address flush dev eth0 scope global\n" } else { "" };
    let mut batch = format!(
        "link set dev lo up\n{forget}\
         link set dev eth0 address {} mtu {} up\n\
         address replace {}/{} dev eth0\n\
         address replace {METADATA_ADDRESS}/32 dev lo\n",
        names.service_mac(),
        spec.mtu,
        spec.service_address,
        spec.cidr.prefix_len(),
    );
    if let (NetworkKind::Nat, Some(gateway)) = (spec.kind, spec.gateway) {
        let _ = writeln!(batch, "route replace default via {gateway} dev eth0");
    }
    // Guests that knew another hardware address learn the one that it is given.
    namespace.run(|| sysctl("net/ipv4/conf/eth0/arp_notify", "1")).await?;
    let ip = tools.cmd("nsenter").arg(namespace.nsenter_arg()).args(["ip", "-batch", "-"]);
    ip.stdin(batch).run(tools.cancel).await?;
    // A new namespace takes its settings from the host's first one, which may forward.
    namespace.run(|| sysctl("net/ipv4/ip_forward", "0")).await
}

/// Removes the links; an uplink that was a port of the bridge is free again. A success when they are not there.
pub async fn remove(names: &Names, tools: &Tools<'_>) -> Result<(), Error> {
    for link in [names.veth(), names.port(), names.bridge()] {
        remove_link(&link, tools).await?;
    }
    Ok(())
}

/// Removes a link; a success when it is not there.
pub async fn remove_link(name: &str, tools: &Tools<'_>) -> Result<(), Error> {
    if !exists(name) {
        return Ok(());
    }
    match tools.cmd("ip").args(["link", "del", "dev", name]).run(tools.cancel).await {
        Err(_) if !exists(name) => Ok(()),
        result => result.map(|_| ()).map_err(Error::from),
    }
}

/// Guests have no IPv6 in Kring's networks yet, and a bridge that takes a link-local address would
/// let them reach the host past every rule.
pub fn no_ipv6(link: &str) -> Result<(), Error> {
    let name = format!("net/ipv6/conf/{link}/disable_ipv6");
    match sysctl(&name, "1") {
        // The kernel has no IPv6 at all.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| Error::Sysctl { name, source }),
    }
}

/// Lets the host forward.
pub fn forward_ipv4() -> Result<(), Error> {
    let name = "net/ipv4/ip_forward";
    sysctl(name, "1").map_err(|source| Error::Sysctl { name: name.into(), source })
}

fn sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/{name}");
    // Writing the value that is there would still wake every listener.
    if std::fs::read_to_string(&path)?.trim() == value { Ok(()) } else { std::fs::write(path, value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ_between_choices() {
        let id: NetworkId = "01939f00-0000-7000-8000-0000ab12cd34".parse().unwrap();
        let first = Names::choice(id, 0);
        assert_eq!((first.bridge().as_str(), first.veth().as_str()), ("kr-ab12cd34", "kv-ab12cd34"));
        assert_eq!(first.bridge_mac(), "02:6b:ab:12:cd:34");
        assert_eq!(first.service_mac(), "02:6c:ab:12:cd:34");
        let choices: std::collections::HashSet<_> = (0..100).map(|n| Names::choice(id, n).suffix).collect();
        assert_eq!(choices.len(), 100);
        assert!(choices.iter().all(|s| s.len() == 8));
    }

    #[test]
    fn what_ip_tells_is_read() {
        let text = r#"[{},{"ifname":"lo","addr_info":[]},{"ifname":"kr-1","ifalias":"kring:x",
            "addr_info":[{"family":"inet","local":"10.0.0.1","prefixlen":24},{"family":"inet6","local":"fe80::1","prefixlen":64}]}]"#;
        let links = parse_links(text).unwrap();
        assert_eq!(links.len(), 2);
        assert_eq!(links[1].ifalias.as_deref(), Some("kring:x"));
        assert!(parse_links("").unwrap().is_empty());
    }
}
