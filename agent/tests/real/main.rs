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
                curl -s -m 5 -o /dev/null -w '%{http_code}' --interface kr-ab12cd03 http://10.77.3.2/ ; pgrep -c dnsmasq; cat /proc/sys/net/ipv4/ip_forward",
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
