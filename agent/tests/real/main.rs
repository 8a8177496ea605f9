//! The agent with the real thing: libvirt, QEMU, dnsmasq, nftables, the kernel's namespaces. Each test
//! has a host of its own and is skipped, with the reason, where there can be none.
#![expect(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

mod agent;
mod lab;

use std::time::Duration;

use self::agent::{Host, cx, cx_within, ensure, network, start, until};
use self::lab::{guest_image, on_host, sh};
use ::agent::ops::{network as network_ops, vm as vm_ops};
use shared::Code;
use shared::api::network::NetworkKind;
use shared::api::vm::{ConsoleKind, StopMode};
use shared::wire::network::{DeleteNetwork, EnsureNetwork};
use shared::wire::vm::{
    AttachVolume, DeleteVm, DetachVolume, PauseVm, PowerState, ReadConsoleLog, RebootVm, ResumeVm, StopVm,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is on the host of Kring's networks; "0" when there is nothing.
fn left_over() -> String {
    sh(
        "ip -o link | grep -c 'k[rv]-'; nft list tables | grep kring; pgrep dnsmasq; grep netns/kring- /proc/self/mounts",
    )
}

#[test]
fn real_life_of_a_vm() {
    on_host("real_life_of_a_vm", async {
        let host = Host::start().await;
        let app = host.app();
        let net = network(NetworkKind::Nat, 1);
        let mut vm = host.vm(&net, "10.77.1.10", Some(&guest_image(false)));
        vm.cloud_init.user_data = Some("#!/bin/sh\nping -c 1 -W 5 10.99.0.1 >/dev/null && echo OUTSIDE-REACHED\nnslookup real-guest.kring.internal\n".into());

        let report = vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        assert_eq!((report.vm_id, report.power, report.generation), (vm.vm_id, PowerState::Running, 1));
        let ready = host.console_says(vm.vm_id, "KRING-GUEST ready").await;
        assert!(ready.contains(&vm.vm_id.to_string()) && ready.contains("hostname=real-guest posted=yes"), "{ready}");
        let console = host.console(vm.vm_id);
        assert!(console.contains("OUTSIDE-REACHED"), "{console}");
        assert!(console.contains("KRING-GUEST seed instance-id="), "{console}");
        assert!(console.contains("10.77.1.10"), "{console}");
        let word = ::agent::network::metadata::guest_ready(&app.config.agent.data_dir, vm.vm_id).unwrap().unwrap();
        assert_eq!(word["ip"], "10.77.1.10");
        let page = sh("wget -q -O - http://10.77.1.10/status.json || curl -s http://10.77.1.10/status.json");
        assert!(page.contains("\"ready\":true"), "{page}");

        // The same command again changes nothing; a newer generation is recorded.
        let again = vm_ops::ensure(app, &cx_within(Duration::from_secs(60), 7), ensure(&vm)).await.unwrap();
        assert_eq!((again.power, again.generation), (PowerState::Running, 7));
        assert_eq!(host.hypervisor().generation(vm.vm_id).await.unwrap(), Some(7));

        let paused = vm_ops::pause(app, &cx(), PauseVm { vm_id: vm.vm_id }).await.unwrap();
        assert_eq!(paused.power, PowerState::Paused);
        until("the digest knows of the pause", || {
            (host.hypervisor().power(vm.vm_id) == Some(PowerState::Paused)).then_some(())
        })
        .await;
        let resumed = vm_ops::resume(app, &cx(), ResumeVm { vm_id: vm.vm_id }).await.unwrap();
        assert_eq!(resumed.power, PowerState::Running);

        // The guest hears the power button.
        let stop = |mode, timeout_s| StopVm { vm_id: vm.vm_id, mode, timeout_s };
        let stopped = vm_ops::stop(app, &cx(), stop(StopMode::GracefulOnly, 60)).await.unwrap();
        assert_eq!(stopped.power, PowerState::Stopped);
        assert!(host.console(vm.vm_id).contains("KRING-GUEST shutdown"));
        assert_eq!(vm_ops::pause(app, &cx(), PauseVm { vm_id: vm.vm_id }).await.unwrap_err().code, Code::InvalidState);
        assert_eq!(vm_ops::stop(app, &cx(), stop(StopMode::Force, 1)).await.unwrap().power, PowerState::Stopped);

        // Started again, it ends by itself: seen as crashed.
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        let mut events = host.hypervisor().events();
        sh("kill -KILL $(pgrep -f qemu-system)");
        let crashed = async {
            loop {
                if let shared::wire::event::AgentEvent::VmChanged { vm } = events.recv().await.unwrap()
                    && vm.power == PowerState::Crashed
                {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), crashed).await.unwrap();
        let restarted =
            vm_ops::reboot(app, &cx(), RebootVm { vm_id: vm.vm_id, mode: StopMode::Graceful, timeout_s: 1 }).await;
        assert_eq!(restarted.unwrap().power, PowerState::Running);

        let log = ReadConsoleLog { vm_id: vm.vm_id, offset: Some(0), max: 1 << 20 };
        assert!(vm_ops::read_console_log(app, &cx(), log).await.unwrap().text.contains("KRING-GUEST ready"));

        let delete_network = || DeleteNetwork { network_id: net.network_id };
        assert_eq!(network_ops::delete(app, &cx(), delete_network()).await.unwrap_err().code, Code::InUse);
        for _ in 0..2 {
            vm_ops::delete(app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        }
        assert_eq!(host.hypervisor().list().await.unwrap().vms, vec![]);
        for _ in 0..2 {
            network_ops::delete(app, &cx(), delete_network()).await.unwrap();
        }
        assert_eq!(left_over(), "0");
        assert!(vm_ops::stop(app, &cx(), stop(StopMode::Force, 1)).await.is_err_and(|e| e.code == Code::NotFound));
        host.agent.stop().await;
    });
}

#[test]
fn real_disks_are_plugged_in_and_out() {
    on_host("real_disks_are_plugged_in_and_out", async {
        let host = Host::start().await;
        let app = host.app();
        let vm = host.vm(&network(NetworkKind::Isolated, 2), "10.77.2.10", Some(&guest_image(false)));
        let vm_id = vm.vm_id;
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        let ready = host.console_says(vm_id, "KRING-GUEST ready").await;
        assert!(ready.contains("posted=yes"), "an isolated network has metadata too: {ready}");

        let disk = host.disk("vdb", None);
        for _ in 0..2 {
            vm_ops::attach_volume(app, &cx(), AttachVolume { vm_id, disk: disk.clone() }).await.unwrap();
        }
        let other = AttachVolume { vm_id, disk: host.disk("vdb", None) };
        assert_eq!(vm_ops::attach_volume(app, &cx(), other).await.unwrap_err().code, Code::InvalidState);
        let serial = ::agent::libvirt::xml::device::Disk::serial(disk.volume.volume_id);
        let everywhere = || {
            format!(
                "{}{}",
                sh(&format!("virsh dumpxml kring-{vm_id}")),
                sh(&format!("virsh dumpxml --inactive kring-{vm_id}"))
            )
        };
        assert_eq!(everywhere().matches(&format!("<serial>{serial}</serial>")).count(), 2);
        let disks = host.hypervisor().identity(vm_id).await.unwrap().unwrap().disks;
        assert_eq!(disks.len(), 2);
        let detach = || DetachVolume { vm_id, volume_id: disk.volume.volume_id };
        for _ in 0..2 {
            vm_ops::detach_volume(app, &cx(), detach()).await.unwrap();
        }
        assert!(!everywhere().contains(&serial));
        assert_eq!(host.hypervisor().identity(vm_id).await.unwrap().unwrap().disks.len(), 1);

        // Both consoles answer.
        let mut vnc = ::agent::ops::console::open(app, vm_id, ConsoleKind::Vnc).await.unwrap();
        let mut greeting = [0; 4];
        vnc.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"RFB ");
        let mut serial_line = ::agent::ops::console::open(app, vm_id, ConsoleKind::Serial).await.unwrap();
        let mut seen = String::new();
        let talk = async {
            while !seen.contains("typed-by-test") {
                serial_line.write_all(b"\necho typed-by-test\n").await.unwrap();
                let mut buffer = [0; 512];
                let n = serial_line.read(&mut buffer).await.unwrap();
                seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        };
        tokio::time::timeout(Duration::from_secs(60), talk).await.unwrap();

        // While it is stopped, too.
        vm_ops::stop(app, &cx(), StopVm { vm_id, mode: StopMode::Force, timeout_s: 1 }).await.unwrap();
        assert_eq!(
            ::agent::ops::console::open(app, vm_id, ConsoleKind::Vnc).await.err().unwrap().code,
            Code::InvalidState
        );
        vm_ops::attach_volume(app, &cx(), AttachVolume { vm_id, disk: disk.clone() }).await.unwrap();
        assert!(everywhere().contains(&serial));
        vm_ops::detach_volume(app, &cx(), detach()).await.unwrap();
        assert!(!everywhere().contains(&serial));
        vm_ops::delete(app, &cx(), DeleteVm { vm_id }).await.unwrap();
        app.networks.purge(&cx().cancel).await.unwrap();
        host.agent.stop().await;
    });
}

#[test]
fn real_networks_are_repaired() {
    on_host("real_networks_are_repaired", async {
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
            "kill -KILL $(pgrep dnsmasq)",
            "umount $(grep -o '/[^ ]*/kring-ab12cd03' /proc/self/mounts)",
            "echo 0 >/proc/sys/net/ipv4/ip_forward",
            "ip rule del iif kr-ab12cd03",
            "true",
        ] {
            sh(damage);
            network_ops::ensure(app, &cx(), command()).await.unwrap();
            assert_eq!(state(), whole, "after {damage}");
        }
        // Other addresses, same network.
        let mut moved = net.clone();
        (moved.cidr, moved.gateway, moved.service_address) =
            ("10.78.0.0/16".parse().unwrap(), "10.78.0.1".parse().unwrap(), "10.78.0.2".parse().unwrap());
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

#[test]
fn real_a_lost_or_frozen_libvirt_is_unknown_not_off() {
    on_host("real_a_lost_or_frozen_libvirt_is_unknown_not_off", async {
        let host = Host::start().await;
        let app = host.app();
        let vm = host.vm(&network(NetworkKind::Isolated, 5), "10.77.5.10", None);
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        until("the digest counts the VM", || host.hypervisor().power(vm.vm_id)).await;
        let before = host.hypervisor().digest().unwrap();

        sh("kill -STOP $(cat /run/libvirtd.pid)");
        let hung = host.hypervisor().list().await;
        assert!(hung.is_err(), "{hung:?}");
        assert!(host.hypervisor().digest().is_err());
        assert_eq!(host.hypervisor().power(vm.vm_id), None);
        sh("kill -CONT $(cat /run/libvirtd.pid)");
        until("the digest is back", || host.hypervisor().digest().ok().filter(|d| *d == before)).await;

        sh("kill -KILL $(cat /run/libvirtd.pid)");
        until("the loss is known", || host.hypervisor().digest().err()).await;
        assert!(host.hypervisor().list().await.is_err());
        sh("rm -f /run/libvirtd.pid; setsid libvirtd -d --pid-file /run/libvirtd.pid >/dev/null 2>&1 </dev/null");
        until("the digest is back", || host.hypervisor().digest().ok().filter(|d| *d == before)).await;
        let now = host.hypervisor().get(vm.vm_id).await.unwrap().unwrap();
        assert_eq!(now.power, PowerState::Running, "the guest did not notice");

        // Events come over the new connection.
        sh(&format!("virsh suspend kring-{}", vm.vm_id));
        until("the event came", || (host.hypervisor().power(vm.vm_id) == Some(PowerState::Paused)).then_some(())).await;
        vm_ops::delete(app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        app.networks.purge(&cx().cancel).await.unwrap();
        host.agent.stop().await;
    });
}

#[test]
fn real_what_fails_leaves_nothing_and_strangers_are_left_alone() {
    on_host("real_what_fails_leaves_nothing_and_strangers_are_left_alone", async {
        let host = Host::start().await;
        let app = host.app();
        let net = network(NetworkKind::Isolated, 6);

        // More memory than there can be: the domain can be defined but not started.
        let mut vm = host.vm(&net, "10.77.6.10", None);
        vm.memory = shared::units::Bytes::gib(1 << 20);
        let error = vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap_err();
        assert_eq!(error.code, Code::HostFailed, "{error:?}");
        assert_eq!(host.hypervisor().list().await.unwrap().vms, vec![]);
        assert_eq!(sh(&format!("cat {}/data/networks/*/dhcp/* | wc -l", host.dir.path().display())), "0");

        // Cancelled while it starts.
        let vm = host.vm(&net, "10.77.6.11", None);
        let late = cx_within(Duration::ZERO, 1);
        assert_eq!(vm_ops::ensure(app, &late, ensure(&vm)).await.unwrap_err().code, Code::DeadlineExceeded);
        assert_eq!(host.hypervisor().list().await.unwrap().vms, vec![]);

        // A guest that does not listen is not stopped gently.
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        let stop = |mode| StopVm { vm_id: vm.vm_id, mode, timeout_s: 1 };
        assert_eq!(vm_ops::stop(app, &cx(), stop(StopMode::GracefulOnly)).await.unwrap_err().code, Code::InvalidState);
        assert_eq!(host.hypervisor().get(vm.vm_id).await.unwrap().unwrap().power, PowerState::Running);
        assert_eq!(vm_ops::stop(app, &cx(), stop(StopMode::Graceful)).await.unwrap().power, PowerState::Stopped);

        // Somebody else's domain: seen when it runs, never taken.
        let id = shared::id::VmId::new();
        let xml = format!(
            "<domain type='qemu'><name>stranger</name><uuid>{id}</uuid><memory>65536</memory><os><type>hvm</type></os></domain>"
        );
        sh(&format!("echo \"{xml}\" >/run/x.xml; virsh define /run/x.xml; virsh start stranger"));
        let listing = host.hypervisor().list().await.unwrap();
        assert_eq!((listing.vms.len(), listing.foreign), (1, vec!["stranger".to_string()]));
        let mut vm = host.vm(&net, "10.77.6.12", None);
        vm.vm_id = id;
        assert_eq!(vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap_err().code, Code::Conflict);
        assert_eq!(sh("virsh domstate stranger"), "running");

        // Kring leaves the host: the stranger stays.
        let config = app.config.clone();
        ::agent::purge::run(&config, Some(host.hypervisor()), &app.networks, &cx().cancel).await.unwrap();
        assert_eq!(sh("virsh list --all --name"), "stranger");
        assert_eq!(left_over(), "0");
        sh("virsh destroy stranger; virsh undefine stranger");
        host.agent.stop().await;
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
    on_host("real_dhcp_dns_metadata_and_walls", async {
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
        assert_eq!(ns("a", "ping -c 1 -W 3 10.99.0.1 >/dev/null && echo out"), "out");
        assert_eq!(ns("c", "ping -c 1 -W 1 10.99.0.1 >/dev/null || echo walled"), "walled");
        assert_eq!(ns("c", "ping -c 1 -W 1 10.77.7.10 >/dev/null || echo walled"), "walled");
        assert_eq!(sh("ping -c 1 -W 3 10.77.7.10 >/dev/null && echo in"), "in");

        app.networks.purge(&cancel).await.unwrap();
        assert_eq!(sh("iptables -S FORWARD"), "-P FORWARD DROP");
        assert_eq!(sh("ip rule | grep -c kr-"), "0");
        sh("ip link del kr-ab12cd07");
        assert_eq!(left_over(), "0");
        host.agent.stop().await;
    });
}

#[test]
fn real_a_guest_boots_by_uefi() {
    on_host("real_a_guest_boots_by_uefi", async {
        let host = Host::start().await;
        let app = host.app();
        let mut vm = host.vm(&network(NetworkKind::Nat, 10), "10.77.10.10", Some(&guest_image(true)));
        vm.firmware = shared::api::image::Firmware::Uefi;
        vm.memory = shared::units::Bytes::mib(256);
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        host.console_says(vm.vm_id, "KRING-GUEST ready").await;
        // Started once more with the same variables of its firmware.
        vm_ops::stop(app, &cx(), StopVm { vm_id: vm.vm_id, mode: StopMode::Force, timeout_s: 1 }).await.unwrap();
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        vm_ops::delete(app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        assert_eq!(sh("ls /var/lib/libvirt/qemu/nvram"), "");
        app.networks.purge(&cx().cancel).await.unwrap();
        host.agent.stop().await;
    });
}

#[test]
fn real_a_start_that_is_cut_off_leaves_nothing_and_can_be_repeated() {
    on_host("real_a_start_that_is_cut_off_leaves_nothing_and_can_be_repeated", async {
        let host = Host::start().await;
        let app = host.app();
        let vm = host.vm(&network(NetworkKind::Isolated, 11), "10.77.11.10", None);
        let context = cx();
        let cut = async {
            until("the start has begun", || (context.progress_now().percent >= 90).then_some(())).await;
            context.cancel.cancel();
        };
        let (result, ()) = tokio::join!(vm_ops::ensure(app, &context, ensure(&vm)), cut);
        assert_eq!(result.unwrap_err().code, Code::Cancelled);
        assert_eq!(host.hypervisor().list().await.unwrap().vms, vec![]);
        assert_eq!(sh("pgrep -c qemu-system"), "0");
        let again = vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        assert_eq!(again.power, PowerState::Running);
        vm_ops::delete(app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        app.networks.purge(&cx().cancel).await.unwrap();
        host.agent.stop().await;
    });
}
