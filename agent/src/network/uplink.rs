//! The way of a `bridged` network out: a port of its bridge that leads to a segment outside.
//!
//! ```text
//!  VLAN:                bridge kr-<x> ── ku-<x> (VLAN device) ── uplink
//!  uplink is a bridge,  bridge kr-<x> ── ku-<x> ══ kp-<x> ── the operator's bridge ── …
//!  or a port of one:
//!  otherwise:           bridge kr-<x> ── uplink
//! ```
//!
//! The port outside and the port of the service namespace are *isolated*: the kernel passes nothing from
//! one to the other, so DHCP, DNS and metadata of a host answer the guests of that host alone, while the
//! guests reach both. An uplink that has an address of the host is not taken: the host would be cut off.

use std::path::PathBuf;

use shared::wire::network::NetworkSpec;

use super::bridge::{self, Names};
use super::{Error, Tools};

/// How the bridge of a network is joined to its uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// A VLAN device on the uplink.
    Vlan(u16),
    /// A cable into a bridge of the operator's.
    Cable(String),
    /// The uplink itself.
    Itself,
}

impl Port {
    /// The name of the port of the network's bridge.
    #[must_use]
    pub fn name(&self, uplink: &str, names: &Names) -> String {
        match self {
            Self::Vlan(_) | Self::Cable(_) => names.port(),
            Self::Itself => uplink.to_string(),
        }
    }
}

/// What the kernel says of an interface, as far as it decides how it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    is_bridge: bool,
    /// What it is a port of, and whether that is a bridge.
    master: Option<(String, bool)>,
    mtu: u32,
    /// The host's addresses on it.
    addresses: Vec<String>,
}

fn class(link: &str) -> PathBuf {
    PathBuf::from("/sys/class/net").join(link)
}

/// What an interface is a port of.
fn master(link: &str) -> Option<String> {
    let path = std::fs::read_link(class(link).join("master")).ok()?;
    Some(path.file_name()?.to_string_lossy().into_owned())
}

async fn look(uplink: &str, tools: &Tools<'_>) -> Result<Seen, Error> {
    if !bridge::exists(uplink) {
        return Err(Error::NoUplink(uplink.to_string()));
    }
    let mtu = std::fs::read_to_string(class(uplink).join("mtu")).unwrap_or_default();
    Ok(Seen {
        is_bridge: class(uplink).join("bridge").exists(),
        master: master(uplink).map(|name| (name.clone(), class(&name).join("bridge").exists())),
        mtu: mtu.trim().parse().unwrap_or(u32::MAX),
        addresses: bridge::reachable_addresses(uplink, tools).await?,
    })
}

/// Decides how an uplink is used; an error says what the operator has to change.
fn choose(spec: &NetworkSpec, uplink: &str, names: &Names, seen: &Seen) -> Result<Port, Error> {
    let refuse = |why: String| Err(Error::Uplink { uplink: uplink.to_string(), why });
    if seen.mtu < u32::from(spec.mtu) {
        return refuse(format!("its MTU is {}, and the network's is {}", seen.mtu, spec.mtu));
    }
    if let Some(vlan) = spec.vlan {
        return Ok(Port::Vlan(vlan));
    }
    if seen.is_bridge {
        return Ok(Port::Cable(uplink.to_string()));
    }
    match &seen.master {
        Some((master, _)) if *master == names.bridge() => return Ok(Port::Itself),
        Some((master, _)) if master.starts_with("kr-") => {
            return refuse(format!("it belongs to another network ({master})"));
        }
        Some((master, true)) => return Ok(Port::Cable(master.clone())),
        Some((master, false)) => return refuse(format!("it is a part of {master}: name that as the uplink")),
        None => {}
    }
    if let Some(address) = seen.addresses.first() {
        return refuse(format!(
            "it has the host's address {address}, and the host would be cut off: make a bridge over it that has the \
             address, and name the bridge or the interface as before; or give the network a VLAN, or an uplink of its own"
        ));
    }
    Ok(Port::Itself)
}

/// Joins the bridge to the uplink, and repairs what is missing. `moved` says that the port may be that of
/// an earlier specification.
pub async fn ensure(spec: &NetworkSpec, names: &Names, moved: bool, tools: &Tools<'_>) -> Result<(), Error> {
    let Some(uplink) = &spec.uplink else { return Ok(()) };
    let port = choose(spec, uplink, names, &look(uplink, tools).await?)?;
    if moved {
        bridge::remove_link(&names.port(), tools).await?;
    }
    let batch = script(spec, uplink, names, &port, bridge::exists(&names.port()));
    tools.cmd("ip").args(["-batch", "-"]).stdin(batch).run(tools.cancel).await?;
    if port != Port::Itself {
        bridge::no_ipv6(&names.port())?;
    }
    if let Port::Cable(_) = port {
        bridge::no_ipv6(&names.plug())?;
    }
    Ok(())
}

/// The commands for `ip`. A port is isolated before it is up.
fn script(spec: &NetworkSpec, uplink: &str, names: &Names, port: &Port, there: bool) -> String {
    let (own, plug, link, mtu) = (names.port(), names.plug(), port.name(uplink, names), spec.mtu);
    let mut lines = Vec::new();
    match port {
        Port::Vlan(vlan) => {
            if !there {
                lines.push(format!("link add link {uplink} name {own} type vlan id {vlan}"));
            }
            lines.push(format!("link set dev {uplink} up"));
        }
        Port::Cable(outer) => {
            if !there {
                lines.push(format!("link add name {own} type veth peer name {plug}"));
            }
            lines.push(format!("link set dev {plug} mtu {mtu} master {outer} up"));
        }
        Port::Itself => {}
    }
    if *port != Port::Itself {
        lines.push(format!("link set dev {own} alias {}", bridge::alias(spec.network_id)));
        lines.push(format!("link set dev {own} mtu {mtu}"));
    }
    lines.push(format!("link set dev {link} master {}", names.bridge()));
    lines.push(format!("link set dev {link} type bridge_slave isolated on"));
    lines.push(format!("link set dev {link} up"));
    lines.join("\n") + "\n"
}

/// The port through which a network is joined to its uplink now; `None` while it is not.
#[must_use]
pub fn plugged(spec: &NetworkSpec, names: &Names) -> Option<String> {
    let uplink = spec.uplink.clone()?;
    let of_ours = |link: &String| master(link).is_some_and(|master| master == names.bridge());
    [names.port(), uplink].into_iter().find(of_ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::network;

    fn spec(vlan: Option<u16>) -> NetworkSpec {
        NetworkSpec { uplink: Some("eth1".into()), vlan, ..network() }
    }

    #[test]
    fn the_uplink_is_used_as_it_is_and_never_with_the_hosts_address() {
        let names = Names { suffix: "ab12cd34".into() };
        let free = Seen { mtu: 1500, ..Seen::default() };
        let port_of = |of: &Seen, vlan| choose(&spec(vlan), "eth1", &names, of).map_err(|e| e.to_string());
        assert_eq!(port_of(&free, None), Ok(Port::Itself));
        assert_eq!(port_of(&free, Some(7)), Ok(Port::Vlan(7)));
        let busy = Seen { addresses: vec!["192.0.2.1/24".into()], ..free.clone() };
        assert!(port_of(&busy, None).unwrap_err().contains("192.0.2.1/24"));
        assert_eq!(port_of(&busy, Some(7)), Ok(Port::Vlan(7)));
        assert_eq!(port_of(&Seen { is_bridge: true, ..busy.clone() }, None), Ok(Port::Cable("eth1".into())));
        let port = |master: &str, bridge| Seen { master: Some((master.into(), bridge)), ..free.clone() };
        assert_eq!(port_of(&port("br0", true), None), Ok(Port::Cable("br0".into())));
        assert_eq!(port_of(&port("kr-ab12cd34", true), None), Ok(Port::Itself));
        assert!(port_of(&port("kr-00000000", true), None).unwrap_err().contains("another network"));
        assert!(port_of(&port("bond0", false), None).unwrap_err().contains("bond0"));
        assert!(port_of(&Seen { mtu: 1400, ..free }, Some(7)).unwrap_err().contains("MTU"));
    }

    #[test]
    fn ports_are_isolated_before_they_are_up() {
        let names = Names { suffix: "ab12cd34".into() };
        let mut all = String::new();
        for port in [Port::Itself, Port::Vlan(7), Port::Cable("br0".into())] {
            all += &format!("# {port:?}\n{}", script(&spec(None), "eth1", &names, &port, false));
        }
        insta::assert_snapshot!("uplink", all);
    }
}
