//! Which addresses a network may have: pure rules, nothing is looked up.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use shared::api::network::{CreateNetwork, NetworkKind};
use shared::{Error, Result};

/// Ranges that no host of the Internet has: RFC 1918, and the shared range of RFC 6598.
const PRIVATE: [(Ipv4Addr, u8); 4] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];
/// Most resolvers that a guest can use.
const MAX_DNS: usize = 4;

/// The addresses of a network that are not for guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Address of the gateway.
    pub(super) gateway: Option<Ipv4Addr>,
    /// Address of DHCP, DNS and metadata.
    pub(super) service_address: Ipv4Addr,
}

/// Checks a range and decides who has which address in it: the gateway the first one, unless another
/// was asked for (a segment outside may have none), and the service the last one that the gateway does not
/// have.
pub(super) fn plan(kind: NetworkKind, cidr: Ipv4Net, gateway: Option<Ipv4Addr>) -> Result<Plan> {
    if !(8..=29).contains(&cidr.prefix_len()) {
        return Err(Error::invalid("cidr", "must be /8 to /29, such as 10.77.0.0/24"));
    }
    if cidr != cidr.trunc() {
        return Err(Error::invalid("cidr", format!("has host bits: give {}", cidr.trunc())));
    }
    let private = PRIVATE.iter().any(|(net, len)| {
        let range = Ipv4Net::new(*net, *len);
        range.is_ok_and(|range| range.contains(&cidr))
    });
    if !private {
        return Err(Error::invalid(
            "cidr",
            "must lie in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10, such as 10.77.0.0/24",
        ));
    }
    let first = u32::from(cidr.network()) + 1;
    let last = u32::from(cidr.broadcast()) - 1;
    let gateway = match (gateway, kind) {
        (None, NetworkKind::Bridged) => return Ok(Plan { gateway: None, service_address: last.into() }),
        (None, NetworkKind::Nat | NetworkKind::Isolated) => first,
        (Some(ip), _) => u32::from(ip),
    };
    if !(first..=last).contains(&gateway) {
        let text = format!("must be one of {} to {}", Ipv4Addr::from(first), Ipv4Addr::from(last));
        return Err(Error::invalid("gateway", text));
    }
    let service = if gateway == last { last - 1 } else { last };
    Ok(Plan { gateway: Some(gateway.into()), service_address: service.into() })
}

/// Checks what a network says of the segment outside: what reaches the hosts' commands is decided here.
pub(super) fn check_uplink(body: &CreateNetwork) -> Result<()> {
    let Some(uplink) = &body.uplink else {
        if body.kind == NetworkKind::Bridged {
            return Err(Error::invalid(
                "uplink",
                "a bridged network needs one: an interface of the hosts, such as eth1",
            ));
        }
        return match body.vlan {
            Some(_) => Err(Error::invalid("vlan", "only a bridged network has one")),
            None => Ok(()),
        };
    };
    if body.kind != NetworkKind::Bridged {
        return Err(Error::invalid("uplink", "only a bridged network has one"));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let name = (1..=15).contains(&uplink.len()) && uplink.bytes().all(plain) && !uplink.starts_with(['.', '-']);
    if !name || ["kr-", "kv-", "ku-", "kp-", "vnet"].iter().any(|own| uplink.starts_with(own)) || uplink == "lo" {
        let text =
            "must be the name of an interface: 1 to 15 letters, digits, '.', '_' and '-', and none of Kring's own";
        return Err(Error::invalid("uplink", text));
    }
    match body.vlan {
        Some(vlan) if !(1..=4094).contains(&vlan) => Err(Error::invalid("vlan", "must be 1 to 4094")),
        _ => Ok(()),
    }
}

/// Checks resolvers: hosts must be able to ask them.
pub(super) fn check_dns(dns: &[Ipv4Addr]) -> Result<()> {
    if dns.len() > MAX_DNS {
        return Err(Error::invalid("dns", format!("give at most {MAX_DNS} resolvers")));
    }
    for (n, ip) in dns.iter().enumerate() {
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || ip.is_link_local() {
            return Err(Error::invalid(format!("dns[{n}]"), format!("{ip} is no resolver that hosts can ask")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(cidr: &str, gateway: Option<&str>) -> Option<String> {
        let plan = plan(NetworkKind::Nat, cidr.parse().unwrap(), gateway.map(|ip| ip.parse().unwrap()));
        plan.err().map(|error| error.fields[0].field.clone())
    }

    #[test]
    fn only_private_ranges_of_a_sensible_size_are_taken() {
        for good in ["10.0.0.0/8", "10.77.0.0/24", "172.31.255.248/29", "192.168.0.0/16", "100.64.0.0/10"] {
            assert_eq!(refused(good, None), None, "{good}");
        }
        for bad in
            ["9.0.0.0/8", "10.0.0.0/7", "10.0.0.0/30", "10.77.0.1/24", "172.32.0.0/16", "192.168.0.0/15", "0.0.0.0/0"]
        {
            assert_eq!(refused(bad, None).as_deref(), Some("cidr"), "{bad}");
        }
        for bad in ["10.77.0.0", "10.77.0.255", "10.78.0.1"] {
            assert_eq!(refused("10.77.0.0/24", Some(bad)).as_deref(), Some("gateway"), "{bad}");
        }
    }

    #[test]
    fn only_a_bridged_network_has_an_uplink_and_it_is_an_interface() {
        let field = |kind, uplink: Option<&str>, vlan| {
            let body = CreateNetwork {
                id: None,
                name: "n".parse().unwrap(),
                kind,
                cidr: "10.0.0.0/24".parse().unwrap(),
                cluster_id: None,
                gateway: None,
                dns: Vec::new(),
                mtu: None,
                uplink: uplink.map(str::to_string),
                vlan,
            };
            check_uplink(&body).err().map(|error| error.fields[0].field.clone())
        };
        let bridged = NetworkKind::Bridged;
        for good in ["eth1", "br0", "bond0.12", "enp3s0f1"] {
            assert_eq!(field(bridged, Some(good), Some(4094)), None, "{good}");
        }
        for bad in ["", "lo", "kr-00000000", "eth1; reboot", "a/b", "-x", "0123456789abcdef"] {
            assert_eq!(field(bridged, Some(bad), None).as_deref(), Some("uplink"), "{bad}");
        }
        assert_eq!(field(bridged, None, None).as_deref(), Some("uplink"));
        assert_eq!(field(bridged, Some("eth1"), Some(0)).as_deref(), Some("vlan"));
        assert_eq!(field(NetworkKind::Nat, Some("eth1"), None).as_deref(), Some("uplink"));
        assert_eq!(field(NetworkKind::Isolated, None, Some(5)).as_deref(), Some("vlan"));
        assert_eq!(field(NetworkKind::Nat, None, None), None);
        let open = plan(bridged, "10.0.0.0/24".parse().unwrap(), None).unwrap();
        assert_eq!((open.gateway, open.service_address.to_string().as_str()), (None, "10.0.0.254"));
    }

    #[test]
    fn resolvers_must_be_reachable_and_few() {
        let parse = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<Ipv4Addr>>();
        assert_eq!(check_dns(&parse(&["9.9.9.9", "192.168.0.1"])), Ok(()));
        assert_eq!(check_dns(&parse(&["9.9.9.9", "127.0.0.53"])).unwrap_err().fields[0].field, "dns[1]");
        assert_eq!(check_dns(&[Ipv4Addr::new(9, 9, 9, 9); 5]).unwrap_err().fields[0].field, "dns");
    }

    proptest! {
        #[test]
        fn gateway_and_service_differ_and_lie_inside(third in 0_u8.., len in 24_u8..=29, offset in 0_u32..256) {
            let cidr = Ipv4Net::new(Ipv4Addr::new(10, 9, third, 0), len).unwrap();
            let asked = Ipv4Addr::from(u32::from(cidr.network()) + offset);
            let hosts: Vec<_> = cidr.hosts().collect();
            prop_assert_eq!(plan(NetworkKind::Bridged, cidr, Some(asked)).is_ok(), hosts.contains(&asked));
            for gateway in [None, Some(asked)] {
                if let Ok(plan) = plan(NetworkKind::Nat, cidr, gateway) {
                    let gateway = plan.gateway.unwrap();
                    prop_assert!(gateway != plan.service_address);
                    prop_assert!(hosts.contains(&gateway) && hosts.contains(&plan.service_address));
                }
            }
        }
    }
}
