//! VMs and their guests: from the first start to the last trace.

use std::time::Duration;

use ::agent::ops::{network as network_ops, vm as vm_ops};
use shared::Code;
use shared::api::network::NetworkKind;
use shared::api::vm::{ConsoleKind, StopMode};
use shared::wire::network::DeleteNetwork;
use shared::wire::vm::{
    AttachVolume, DeleteVm, DetachVolume, PauseVm, PowerState, ReadConsoleLog, RebootVm, ResumeVm, StopVm,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{Host, cx, cx_within, ensure, network, until};
use crate::lab::{guest_image, left_over, on_host, outside, sh};

#[test]
fn real_life_of_a_vm() {
    on_host("life::real_life_of_a_vm", async {
        let host = Host::start().await;
        let app = host.app();
        let net = network(NetworkKind::Nat, 1);
        let mut vm = host.vm(&net, "10.77.1.10", Some(&guest_image(false)));
        vm.cloud_init.user_data = Some(format!(
            "#!/bin/sh\nping -c 1 -W 5 {} && echo OUTSIDE-REACHED\nnslookup real-guest.kring.internal\n",
            outside()
        ));

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
    on_host("life::real_disks_are_plugged_in_and_out", async {
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
fn real_a_guest_boots_by_uefi() {
    on_host("life::real_a_guest_boots_by_uefi", async {
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
