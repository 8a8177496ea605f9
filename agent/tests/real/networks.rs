//! Networks: what guests get of them, what is repaired, what comes back.

use ::agent::ops::{network as network_ops, vm as vm_ops};
use shared::Code;
use shared::api::network::NetworkKind;
use shared::wire::network::{DeleteNetwork, EnsureNetwork, NetworkSpec};
use shared::wire::vm::{DeleteVm, PowerState};

use crate::agent::{Host, cx, ensure, network, start, until};
use crate::lab::{guest_image, left_over, on_host, outside, sh};

#[test]
fn real_networks_are_repaired() {
    on_host("networks::real_networks_are_repaired", async {
        let host = Host::start().await;
        let app = host.app();
        let net = network(NetworkKind::Nat, 3);
        let command = || EnsureNetwork { network: net.clone() };
        network_ops::ensure(app, &cx(), command()).await.unwrap();
        let state = || {
            sh(
                "ip -br addr show dev kr-ab12cd03 | tr -s ' '; ip -br link | grep -c ^kv-ab12cd03; nft list table ip kring | grep -c masquerade; \
                ip rule | grep -c kr-ab12cd03; pgrep -c dnsmasq; cat /proc/sys/net/ipv4/ip_forward",
            )
        };
        let whole = state();
        assert!(whole.contains("10.77.3.1/24"), "{whole}");
        for damage in [
            "ip link del kr-ab12cd03",
            "ip link del kv-ab12cd03",
            "ip addr add 10.77.9.1/24 dev kr-ab12cd03; ip addr del 10.77.3.1/24 dev kr-ab12cd03; ip link set kr-ab12cd03 down",
            "nft flush ruleset",
            "p=$(pgrep dnsmasq); kill -KILL $p; while grep -q . /proc/$p/cmdline; do :; done",
            "umount $(grep -o '/[^ ]*/kring-ab12cd03' /proc/self/mounts)",
            "echo 0 >/proc/sys/net/ipv4/ip_forward",
            "ip rule del iif kr-ab12cd03",
            "true",
        ] {
            sh(damage);
            network_ops::ensure(app, &cx(), command()).await.unwrap();
            assert_eq!(state(), whole, "after {damage}");
        }
        // The same without a command: somebody looks now and then.
        for damage in ["kill -KILL $(pgrep dnsmasq)", "nft flush ruleset", "ip link del kr-ab12cd03"] {
            sh(damage);
            until(&format!("{damage} is repaired"), || (state() == whole).then_some(())).await;
        }
        // Other addresses, same network.
        let mut moved = net.clone();
        (moved.cidr, moved.gateway, moved.service_address) =
            ("10.78.0.0/16".parse().unwrap(), Some("10.78.0.1".parse().unwrap()), "10.78.0.2".parse().unwrap());
        network_ops::ensure(app, &cx(), EnsureNetwork { network: moved }).await.unwrap();
        let addresses = sh("ip -br addr show dev kr-ab12cd03; nft list table ip kring");
        assert!(addresses.contains("10.78.0.1/16") && !addresses.contains("10.77.3"), "{addresses}");
        network_ops::ensure(app, &cx(), command()).await.unwrap();
        assert_eq!(state(), whole);

        // A second network lives beside it, and a new agent finds both.
        network_ops::ensure(app, &cx(), EnsureNetwork { network: network(NetworkKind::Isolated, 4) }).await.unwrap();
        let pids = sh("pgrep dnsmasq | sort");
        let dir = host.dir;
        host.agent.stop().await;
        assert_eq!(sh("pgrep dnsmasq | sort"), pids, "DHCP goes on without an agent");
        let agent = start(dir.path()).await;
        let app = &agent.app;
        app.networks.restore(Some(&[]), &cx().cancel).await;
        assert_eq!(app.networks.list().unwrap().len(), 2);
        assert_eq!(sh("pgrep dnsmasq | sort"), pids);
        let answer = "nsenter --net=$(grep -o '/[^ ]*/kring-ab12cd04' /proc/self/mounts) curl -s -m 5 -o /dev/null -w '%{http_code}' http://169.254.169.254/";
        assert_eq!(sh(answer), "404", "metadata is served, though not to strangers");

        // A record that is lost is no reason to leave anything behind.
        sh(&format!("rm -r {}/data/networks/*cd04", dir.path().display()));
        app.networks.purge(&cx().cancel).await.unwrap();
        assert_eq!(left_over(), "0");
        agent.stop().await;
        drop(dir);
    });
}

/// A guest without a hypervisor: a namespace with a card on the bridge.
fn card(name: &str, bridge: &str, mac: &str) {
    sh(&format!(
        "ip netns add {name}; ip link add t-{name} type veth peer name eth0 address {mac} netns {name}; \
         ip link set t-{name} master {bridge} up; ip -n {name} link set lo up; ip -n {name} link set eth0 up"
    ));
}

#[test]
fn real_dhcp_dns_metadata_and_walls() {
    on_host("networks::real_dhcp_dns_metadata_and_walls", async {
        let host = Host::start().await;
        let app = host.app();
        // Docker's way to set a host up.
        sh("iptables -P FORWARD DROP");
        // A bridge of somebody else has the name that the network would take first.
        sh("ip link add kr-ab12cd07 type bridge");
        let (nat, isolated) = (network(NetworkKind::Nat, 7), network(NetworkKind::Isolated, 8));
        let cancel = cx().cancel;
        let bridge = app.networks.ensure(&nat, &cancel).await.unwrap();
        assert_ne!(bridge, "kr-ab12cd07");
        assert_eq!(app.networks.ensure(&nat, &cancel).await.unwrap(), bridge);
        let lonely = app.networks.ensure(&isolated, &cancel).await.unwrap();
        let (mut a, b, mut c) = (
            host.vm(&nat, "10.77.7.10", None),
            host.vm(&nat, "10.77.7.11", None),
            host.vm(&isolated, "10.77.8.10", None),
        );
        (a.cloud_init.hostname, c.cloud_init.hostname) = ("first".into(), "third".into());
        for (vm, name, bridge) in [(&a, "a", &bridge), (&b, "b", &bridge), (&c, "c", &lonely)] {
            let dir = ::agent::cloud_init::vm_dir(&app.config.agent.data_dir, vm.vm_id);
            ::agent::cloud_init::GuestData::of(vm).write(&dir).unwrap();
            app.networks.add_nic(vm.vm_id, &vm.cloud_init.hostname, &vm.nics[0]).await.unwrap();
            card(name, bridge, &vm.nics[0].mac);
        }
        card("x", &bridge, "52:54:00:00:00:99");

        let dhcp = |name: &str| {
            sh(&format!(
                "ip netns exec {name} busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -O staticroutes -O mtu -s /run/show 2>&1"
            ))
        };
        std::fs::write(
            "/run/show",
            "#!/bin/sh\n[ $1 = bound ] && set | grep -E '^(ip|router|dns|domain|mtu|hostname|staticroutes)='\nexit 0\n",
        )
        .unwrap();
        sh("chmod 755 /run/show");
        let lease = dhcp("a");
        for word in [
            "ip='10.77.7.10'",
            "router='10.77.7.1'",
            "dns='10.77.7.2'",
            "domain='kring.internal'",
            "mtu='1400'",
            "hostname='first'",
            "staticroutes='169.254.169.254/32 10.77.7.2 0.0.0.0/0 10.77.7.1'",
        ] {
            assert!(lease.contains(word), "{word} in {lease}");
        }
        let lease = dhcp("c");
        assert!(lease.contains("ip='10.77.8.10'") && !lease.contains("router="), "{lease}");
        assert!(!dhcp("x").contains("ip="), "a card that nobody knows gets no address");

        // A network card that was taken away gets none any more.
        app.networks.remove_vm(b.vm_id).await.unwrap();
        until("the lease is forgotten", || (!dhcp("b").contains("ip=")).then_some(())).await;

        sh("ip -n a addr add 10.77.7.10/24 dev eth0; ip -n a route add default via 10.77.7.1");
        sh(
            "ip -n c addr add 10.77.8.10/24 dev eth0; ip -n c route add default via 10.77.8.2; ip -n x addr add 10.77.7.99/24 dev eth0",
        );
        let ns = |name: &str, line: &str| sh(&format!("ip netns exec {name} {line}"));
        assert!(ns("a", "busybox nslookup first.kring.internal 10.77.7.2").contains("10.77.7.10"));

        // This guest has only its default route: the host shows it the way.
        let get = |name: &str, rest: &str| ns(name, &format!("curl -s -m 5 {rest}"));
        let me = "http://169.254.169.254/latest/meta-data/instance-id";
        assert_eq!(get("a", me), a.vm_id.to_string());
        assert_eq!(get("c", me), c.vm_id.to_string());
        let token =
            get("a", "-X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token");
        assert_eq!(get("a", &format!("-H 'X-aws-ec2-metadata-token: {token}' {me}")), a.vm_id.to_string());
        assert_eq!(get("c", &format!("-w '%{{http_code}}' -H 'X-aws-ec2-metadata-token: {token}' {me}")), "401");
        assert_eq!(get("a", "-d hello http://169.254.169.254/kring/ready"), "ok");
        let word = ::agent::network::metadata::guest_ready(&app.config.agent.data_dir, a.vm_id).unwrap().unwrap();
        assert_eq!((word["ip"].as_str(), word["message"].as_str()), (Some("10.77.7.10"), Some("hello")));
        let large =
            get("a", "-w '%{http_code}' -o /dev/null --data-binary @/usr/sbin/nft http://169.254.169.254/kring/ready");
        assert_eq!(large, "413");
        sh("ip -n x route add default via 10.77.7.1");
        assert!(get("x", me).contains("no VM has this address"));

        // Out of the nat network by the host's address, in spite of iptables; out of the other not at all.
        let world = outside();
        let pings = |name: &str, to: &str| ns(name, &format!("ping -c 1 -W 2 {to} >/dev/null && echo pong"));
        assert_eq!((pings("a", world).as_str(), pings("c", world).as_str()), ("pong", ""));
        assert_eq!(pings("c", "10.77.7.10"), "");
        assert_eq!(sh("ping -c 1 -W 3 10.77.7.10 >/dev/null && echo in"), "in");

        // No bridge is a way into the host, whichever of its addresses is tried; the gateway can be pinged.
        let address = sh("ip -br -4 addr show dev eth0 | grep -o '10[.][0-9.]*'");
        sh("busybox httpd -p 8099 -h /run");
        assert_eq!(sh(&format!("curl -s -o /dev/null -m 5 -w '%{{http_code}}' http://{address}:8099/show")), "200");
        for to in ["10.77.7.1", &address] {
            assert_eq!(ns("a", &format!("curl -s -m 2 http://{to}:8099/show || echo walled")), "walled", "{to}");
        }
        sh(&format!(
            "ip -n c route add {address} dev eth0; ip -n c neigh add {address} dev eth0 lladdr $(cat /sys/class/net/{lonely}/address)"
        ));
        assert_eq!(ns("c", &format!("curl -s -m 2 http://{address}:8099/show || echo walled")), "walled");
        assert_eq!(pings("a", "10.77.7.1"), "pong");

        app.networks.purge(&cancel).await.unwrap();
        assert_eq!(sh("iptables -S FORWARD"), "-P FORWARD DROP");
        assert_eq!(sh("ip rule | grep -c kr-"), "0");
        sh("ip link del kr-ab12cd07");
        assert_eq!(left_over(), "0");
        host.agent.stop().await;
    });
}

#[test]
fn real_many_at_once_and_all_from_libvirt_alone() {
    on_host("networks::real_many_at_once_and_all_from_libvirt_alone", async {
        let host = Host::start().await;
        let app = host.app();
        let (nat, isolated) = (network(NetworkKind::Nat, 12), network(NetworkKind::Isolated, 13));
        let vms: Vec<_> = (10..14)
            .flat_map(|n| [(&nat, format!("10.77.12.{n}")), (&isolated, format!("10.77.13.{n}"))])
            .map(|(net, ip)| host.vm(net, &ip, None))
            .collect();
        let context = cx();
        let results =
            futures_util::future::join_all(vms.iter().map(|vm| vm_ops::ensure(app, &context, ensure(vm)))).await;
        for result in results {
            assert_eq!(result.unwrap().power, PowerState::Running);
        }
        let listing = host.hypervisor().list().await.unwrap();
        assert_eq!(listing.vms.len(), vms.len());
        let digest = shared::wire::vm::digest(listing.vms.iter().map(|vm| (&vm.vm_id, &vm.power)));
        until("the digest is that of the list", || {
            (host.hypervisor().summary().is_ok_and(|s| s.digest == digest)).then_some(())
        })
        .await;

        // The agent is gone, and everything with it but the domains.
        let dir = host.dir;
        host.agent.stop().await;
        sh(
            "kill -KILL $(pgrep dnsmasq); for l in $(ip -o link | grep -o 'k[rv]-[0-9a-f]*' | sort -u); do ip link del $l; done; \
            nft delete table ip kring; for m in $(grep -o '/[^ ]*/kring-ab12cd..' /proc/self/mounts); do umount $m; done",
        );
        sh(&format!("rm -r {0}/data/networks {0}/run", dir.path().display()));
        assert_eq!(left_over(), "0");
        let agent = start(dir.path()).await;
        let leases = || sh(&format!("cat {}/data/networks/*/dhcp/* | wc -l", dir.path().display()));
        until("every lease is back", || (leases() == vms.len().to_string()).then_some(())).await;
        assert_eq!(
            sh("pgrep -c dnsmasq; ip -o link | grep -c ': kr-'; nft list table ip kring | grep -c masquerade"),
            "2\n2\n1"
        );

        for vm in &vms {
            vm_ops::delete(&agent.app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        }
        agent.app.networks.purge(&cx().cancel).await.unwrap();
        assert_eq!(left_over(), "0");
        agent.stop().await;
    });
}

#[test]
fn real_a_guest_cannot_answer_dhcp() {
    on_host("networks::real_a_guest_cannot_answer_dhcp", async {
        let host = Host::start().await;
        let app = host.app();
        let net = network(NetworkKind::Isolated, 15);
        let mut vm = host.vm(&net, "10.77.15.10", Some(&guest_image(false)));
        let server = "start 10.77.15.66\nend 10.77.15.67\ninterface eth0\nlease_file /tmp/leases\npidfile /tmp/pid\n";
        vm.cloud_init.user_data = Some(format!(
            "#!/bin/sh\nmkdir -p /tmp\n: >/tmp/leases\nprintf '{}' >/tmp/conf\nudhcpd -f /tmp/conf &\necho ROGUE-SERVES\n",
            server.replace('\n', "\\n")
        ));
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        host.console_says(vm.vm_id, "ROGUE-SERVES").await;
        let bridge = app.networks.ensure(&net, &cx().cancel).await.unwrap();
        card("y", &bridge, "52:54:00:00:00:98");
        std::fs::write("/run/show", "#!/bin/sh\n[ $1 = bound ] && echo got $ip\nexit 0\n").unwrap();
        sh("chmod 755 /run/show");
        let dhcp = || sh("ip netns exec y busybox udhcpc -i eth0 -n -q -f -t 4 -T 1 -s /run/show 2>/dev/null");
        assert_eq!(dhcp(), "", "what the guest offers does not leave its card");
        // Without the filter it would.
        sh("ebtables -t nat -F; ebtables -t nat -X");
        until("the guest's server answers", || dhcp().contains("got 10.77.15.6").then_some(())).await;
        vm_ops::delete(app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        app.networks.purge(&cx().cancel).await.unwrap();
        host.agent.stop().await;
    });
}

/// Another machine on the segment outside: what a second host, its guests and their router are to this one.
fn segment_outside() {
    sh("ip netns add peer; ip link add eth1 type veth peer name eth0 netns peer; \
        ip -n peer addr add 10.77.30.99/24 dev eth0; ip -n peer link set eth0 up");
}

#[test]
fn real_bridged_network() {
    on_host("networks::real_bridged_network", async {
        segment_outside();
        let host = Host::start().await;
        let app = host.app();
        let mut net = network(NetworkKind::Bridged, 30);
        let refusal = async |net: &NetworkSpec| {
            network_ops::ensure(app, &cx(), EnsureNetwork { network: net.clone() }).await.unwrap_err()
        };
        net.uplink = Some("eth9".into());
        let none = refusal(&net).await;
        assert!(none.code == Code::InvalidState && none.message.contains("no interface eth9"), "{none}");
        net.uplink = Some("eth1".into());
        sh("ip addr add 192.0.2.9/24 dev eth1");
        let busy = refusal(&net).await;
        assert!(busy.message.contains("192.0.2.9/24") && busy.message.contains("cut off"), "{busy}");
        sh("ip addr del 192.0.2.9/24 dev eth1");

        let mut vm = host.vm(&net, "10.77.30.10", Some(&guest_image(false)));
        vm.cloud_init.user_data = Some("#!/bin/sh\nping -c 1 -W 5 10.77.30.99 && echo OUTSIDE-REACHED\n".to_string());
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        let ready = host.console_says(vm.vm_id, "KRING-GUEST ready").await;
        assert!(ready.contains("posted=yes"), "{ready}");
        let console = host.console(vm.vm_id);
        assert!(console.contains("OUTSIDE-REACHED") && console.contains("ip=10.77.30.10"), "{console}");
        // From outside the guest is reached, and this host's service is not.
        assert_eq!(sh("ip netns exec peer ping -c 1 -W 5 10.77.30.10 >&2 && echo yes"), "yes");
        assert_eq!(sh("ip netns exec peer ping -c 2 -W 1 10.77.30.2 >&2 && echo yes"), "");
        let ports = sh("bridge -d link show | grep -c 'isolated on'");
        assert_eq!(ports, "2", "{}", sh("bridge -d link show"));
        assert!(sh("nft list table bridge kring").contains("oifname \"eth1\""));
        sh("ip link set eth1 nomaster");
        until("the uplink is plugged in again", || (!sh("bridge link show dev eth1").is_empty()).then_some(())).await;

        // A bridge of the operator's that has the host's address is used as it is.
        sh("ip link add br0 type bridge; ip addr add 10.88.0.1/24 dev br0; ip link set br0 up");
        let second = NetworkSpec { uplink: Some("br0".into()), ..network(NetworkKind::Bridged, 31) };
        network_ops::ensure(app, &cx(), EnsureNetwork { network: second.clone() }).await.unwrap();
        network_ops::ensure(app, &cx(), EnsureNetwork { network: second.clone() }).await.unwrap();
        assert!(sh("ip -br link show master br0").starts_with("kp-ab12cd1f@"), "{}", sh("ip -br link"));
        assert!(sh("ip -br addr show dev br0").contains("10.88.0.1/24"));

        vm_ops::delete(app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        for network_id in [net.network_id, second.network_id] {
            network_ops::delete(app, &cx(), DeleteNetwork { network_id }).await.unwrap();
        }
        assert_eq!(left_over(), "0");
        assert_eq!(sh("nft list tables | grep kring; ip -br link show master br0; ip -o link | grep -c 'k[up]-'"), "0");
        assert_eq!(sh("bridge link show dev eth1"), "");
    });
}
