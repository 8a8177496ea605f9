//! The host's rules for all networks: one nftables table `kring`, replaced as a whole and at once.
//!
//! A `nat` network reaches what is outside of it by the host's address, and nothing outside may begin
//! to talk to its guests; what stays on one bridge always passes (a host with `br_netfilter` shows
//! it to these rules too). An `isolated` network is not forwarded at all.
//!
//! A bridge is no way into the host: guests get DHCP, DNS and metadata from their network's namespace,
//! so nothing that comes from a bridge for one of the host's own addresses is let in but answers to
//! what the host began, a ping of the gateway, and the questions that the namespace passes on to a
//! resolver that runs on the host.
//!
//! A `bridged` network is not routed by the host either. What its guests and the segment outside say to
//! each other about DHCP is dropped between bridge and uplink ([`bridged_ruleset`]): addresses are given by
//! the host's own service alone.
//!
//! Another table's "drop" wins over an "accept" here. Where iptables' FORWARD chain drops by default
//! (Docker sets it so) rules are put at its beginning for each bridge, see [`open_iptables`].

use std::fmt::Write as _;

use shared::api::network::NetworkKind;

use super::bridge::Names;
use super::files::Record;
use super::{Error, Tools, uplink};

/// The table.
pub const TABLE: &str = "kring";

/// The script for `nft -f`, which replaces the table.
#[must_use]
pub fn ruleset(networks: &[Record]) -> String {
    let mut input = String::new();
    let mut forward = String::new();
    let mut source = String::new();
    for Record { spec, suffix, .. } in networks {
        let bridge = Names { suffix: suffix.clone() }.bridge();
        let cidr = spec.cidr.trunc();
        let _ = writeln!(forward, "    iifname \"{bridge}\" oifname \"{bridge}\" accept");
        match spec.kind {
            NetworkKind::Nat => {
                let service = spec.service_address;
                let _ = writeln!(input, "    iifname \"{bridge}\" ct state established,related accept");
                if let Some(gateway) = spec.gateway {
                    let _ =
                        writeln!(input, "    iifname \"{bridge}\" ip daddr {gateway} icmp type echo-request accept");
                }
                for protocol in ["udp", "tcp"] {
                    let _ = writeln!(input, "    iifname \"{bridge}\" ip saddr {service} {protocol} dport 53 accept");
                }
                let _ = writeln!(forward, "    iifname \"{bridge}\" ip saddr != {cidr} drop");
                let _ = writeln!(forward, "    oifname \"{bridge}\" ct state established,related accept");
                let _ = writeln!(forward, "    oifname \"{bridge}\" drop");
                let _ = writeln!(
                    source,
                    "    ip saddr {cidr} ip daddr != {{ {cidr}, 224.0.0.0/4, 255.255.255.255 }} oifname != \"{bridge}\" masquerade"
                );
            }
            NetworkKind::Isolated | NetworkKind::Bridged => {
                let _ = writeln!(forward, "    iifname \"{bridge}\" drop");
                let _ = writeln!(forward, "    oifname \"{bridge}\" drop");
            }
        }
        let _ = writeln!(input, "    iifname \"{bridge}\" drop");
    }
    format!(
        "table ip {TABLE}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n  \
           chain input {{\n    type filter hook input priority filter - 1; policy accept;\n{input}  }}\n  \
           chain forward {{\n    type filter hook forward priority filter - 1; policy accept;\n{forward}  }}\n  \
           chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{source}  }}\n\
         }}\n"
    )
}

/// The script for `nft -f` that replaces the table of what crosses bridges. `port_of` tells through which
/// port a network is joined to its uplink.
#[must_use]
pub fn bridged_ruleset(networks: &[Record], port_of: impl Fn(&Record) -> Option<String>) -> String {
    let mut forward = String::new();
    for port in networks.iter().filter(|n| n.spec.kind == NetworkKind::Bridged).filter_map(port_of) {
        let _ = writeln!(forward, "    oifname \"{port}\" ether type ip udp dport 67 drop");
        let _ = writeln!(forward, "    iifname \"{port}\" ether type ip udp sport 67 drop");
    }
    format!(
        "table bridge {TABLE}\n\
         delete table bridge {TABLE}\n\
         table bridge {TABLE} {{\n  \
           chain forward {{\n    type filter hook forward priority filter; policy accept;\n{forward}  }}\n\
         }}\n"
    )
}

/// Puts the rules between bridges and uplinks in force; removes the table when no network needs it.
pub async fn apply_bridged(networks: &[Record], tools: &Tools<'_>) -> Result<(), Error> {
    if networks.iter().all(|n| n.spec.kind != NetworkKind::Bridged) {
        // It may not be there, nor be known to the kernel.
        tools.cmd("nft").args(["delete", "table", "bridge", TABLE]).run_any(tools.cancel).await?;
        return Ok(());
    }
    let port_of = |n: &Record| uplink::plugged(&n.spec, &Names { suffix: n.suffix.clone() });
    tools.cmd("nft").args(["-f", "-"]).stdin(bridged_ruleset(networks, port_of)).run(tools.cancel).await?;
    Ok(())
}

/// Whether the table is there.
pub async fn is_applied(tools: &Tools<'_>) -> Result<bool, Error> {
    Ok(tools.cmd("nft").args(["list", "chain", "ip", TABLE, "input"]).run_any(tools.cancel).await?.success())
}

/// Puts the rules for these networks in force; removes the table when there are none.
pub async fn apply(networks: &[Record], tools: &Tools<'_>) -> Result<(), Error> {
    let script =
        if networks.is_empty() { format!("table ip {TABLE}\ndelete table ip {TABLE}\n") } else { ruleset(networks) };
    tools.cmd("nft").args(["-f", "-"]).stdin(script).run(tools.cancel).await?;
    Ok(())
}

/// Rules of iptables that let a network pass, as arguments after `-I`: what comes from the bridge of a
/// `nat` network or goes to it; of an `isolated` one only what stays on the bridge, which iptables
/// sees on a host with `br_netfilter`.
fn iptables_rules(kind: NetworkKind, bridge: &str) -> Vec<Vec<String>> {
    let rule = |links: &[&str]| {
        let mut rule = vec!["FORWARD"];
        rule.extend(links);
        rule.extend(["-m", "comment", "--comment", TABLE, "-j", "ACCEPT"]);
        rule.into_iter().map(str::to_string).collect()
    };
    match kind {
        NetworkKind::Nat => vec![rule(&["-i", bridge]), rule(&["-o", bridge])],
        NetworkKind::Isolated | NetworkKind::Bridged => vec![rule(&["-i", bridge, "-o", bridge])],
    }
}

/// Lets a network pass iptables, when its FORWARD chain drops by default.
pub async fn open_iptables(kind: NetworkKind, bridge: &str, tools: &Tools<'_>) -> Result<(), Error> {
    let Some(listing) = iptables_forward(tools).await? else { return Ok(()) };
    if !listing.lines().any(|l| l.trim() == "-P FORWARD DROP") {
        return Ok(());
    }
    for rule in iptables_rules(kind, bridge) {
        let known = tools.cmd("iptables").args(["-w", "-C"]).args(&rule).run_any(tools.cancel).await?;
        if !known.success() {
            tracing::info!(bridge, "iptables drops what is forwarded; a rule lets the network pass");
            tools.cmd("iptables").args(["-w", "-I"]).args(&rule).run(tools.cancel).await?;
        }
    }
    Ok(())
}

/// Takes back what [`open_iptables`] did, for whichever kind.
pub async fn close_iptables(bridge: &str, tools: &Tools<'_>) -> Result<(), Error> {
    let Some(listing) = iptables_forward(tools).await? else { return Ok(()) };
    if !listing.contains(&format!(" {bridge} ")) {
        return Ok(());
    }
    for rule in [NetworkKind::Nat, NetworkKind::Isolated].into_iter().flat_map(|kind| iptables_rules(kind, bridge)) {
        // Until it is gone: a rule may have been put in twice.
        while tools.cmd("iptables").args(["-w", "-D"]).args(&rule).run_any(tools.cancel).await?.success() {}
    }
    Ok(())
}

/// The FORWARD chain; `None` on a host that has no iptables.
async fn iptables_forward(tools: &Tools<'_>) -> Result<Option<String>, Error> {
    match tools.cmd("iptables").args(["-w", "-S", "FORWARD"]).run_any(tools.cancel).await {
        Ok(output) if output.success() => Ok(Some(output.text())),
        Ok(_) | Err(crate::cmd::Error::Start { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::network;

    #[test]
    fn every_kind_has_its_rules() {
        let nat = Record { spec: network(), suffix: "ab12cd34".into(), complete: true };
        let mut isolated = Record { spec: network(), suffix: "00000001".into(), complete: true };
        isolated.spec.kind = NetworkKind::Isolated;
        let mut bridged = Record { spec: network(), suffix: "00000002".into(), complete: true };
        (bridged.spec.kind, bridged.spec.uplink) = (NetworkKind::Bridged, Some("eth1".into()));
        let all = [nat, isolated, bridged];
        insta::assert_snapshot!("ruleset", ruleset(&all));
        let port_of = |record: &Record| Some(Names { suffix: record.suffix.clone() }.port());
        insta::assert_snapshot!("ruleset_bridged", bridged_ruleset(&all, port_of));
    }
}
