//! What goes wrong: libvirt lost or frozen, commands that fail or are cut off, strangers' domains.

use std::time::Duration;

use ::agent::ops::vm as vm_ops;
use shared::Code;
use shared::api::network::NetworkKind;
use shared::api::vm::StopMode;
use shared::wire::vm::{DeleteVm, PauseVm, PowerState, StopVm};

use crate::agent::{Host, cx, cx_within, ensure, network, until};
use crate::lab::{left_over, on_host, sh};

#[test]
fn real_a_lost_or_frozen_libvirt_is_unknown_not_off() {
    on_host("faults::real_a_lost_or_frozen_libvirt_is_unknown_not_off", async {
        let host = Host::start().await;
        let app = host.app();
        let vm = host.vm(&network(NetworkKind::Isolated, 5), "10.77.5.10", None);
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        let running = || (host.hypervisor().power(vm.vm_id) == Some(PowerState::Running)).then_some(());
        until("the digest counts the VM as running", running).await;
        let before = host.hypervisor().summary().unwrap().digest;

        sh("kill -STOP $(cat /run/libvirtd.pid)");
        let hung = host.hypervisor().list().await;
        assert!(hung.is_err(), "{hung:?}");
        assert!(host.hypervisor().summary().is_err());
        assert_eq!(host.hypervisor().power(vm.vm_id), None);
        sh("kill -CONT $(cat /run/libvirtd.pid)");
        until("the digest is back", || host.hypervisor().summary().ok().filter(|s| s.digest == before)).await;

        sh("kill -KILL $(cat /run/libvirtd.pid)");
        until("the loss is known", || host.hypervisor().summary().err()).await;
        assert!(host.hypervisor().list().await.is_err());
        sh("rm -f /run/libvirtd.pid; setsid libvirtd -d --pid-file /run/libvirtd.pid >/dev/null 2>&1 </dev/null");
        until("the digest is back", || host.hypervisor().summary().ok().filter(|s| s.digest == before)).await;
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
    on_host("faults::real_what_fails_leaves_nothing_and_strangers_are_left_alone", async {
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
        assert_eq!(sh("virsh nwfilter-list | grep -c kring-guest"), "1");
        let config = app.config.clone();
        ::agent::purge::run(&config, Some(host.hypervisor()), &app.networks, &cx().cancel).await.unwrap();
        assert_eq!(sh("virsh list --all --name"), "stranger");
        assert_eq!(sh("virsh nwfilter-list | grep -c kring-; virsh nwfilter-list | grep -c clean-traffic$"), "0\n1");
        assert_eq!(left_over(), "0");
        sh("virsh destroy stranger; virsh undefine stranger");
        host.agent.stop().await;
    });
}

#[test]
fn real_a_start_that_is_cut_off_leaves_nothing_and_can_be_repeated() {
    on_host("faults::real_a_start_that_is_cut_off_leaves_nothing_and_can_be_repeated", async {
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

/// Makes every start of a domain on this host wait until `/run/go` is there.
fn starts_wait() {
    let hook = "#!/bin/sh\n[ $2 = prepare ] || exit 0\ntouch /run/inside\nuntil [ -e /run/go ]; do sleep 0.05; done\n";
    std::fs::create_dir_all("/etc/libvirt/hooks").unwrap();
    std::fs::write("/etc/libvirt/hooks/qemu", hook).unwrap();
    sh(
        "chmod 755 /etc/libvirt/hooks/qemu; kill $(cat /run/libvirtd.pid); while pgrep -x libvirtd; do sleep 0.05; done",
    );
    sh("rm -f /run/libvirtd.pid; setsid libvirtd -d --pid-file /run/libvirtd.pid >/dev/null 2>&1 </dev/null");
}

#[test]
fn real_a_call_that_is_given_up_leaves_nothing_when_it_ends() {
    on_host("faults::real_a_call_that_is_given_up_leaves_nothing_when_it_ends", async {
        starts_wait();
        let host = Host::start_with(|c| c.libvirt.call_timeout_s = 2).await;
        // libvirt has asked QEMU what it can before the time of a call begins to run.
        sh("virsh domcapabilities");
        let app = host.app();
        let vm = host.vm(&network(NetworkKind::Isolated, 14), "10.77.14.10", None);
        // The start takes longer than it may; taking it back waits for it, in vain.
        let error = vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded, "{error:?}");
        assert!(std::path::Path::new("/run/inside").exists(), "the start is inside libvirt");

        // A deletion is not answered as done while the start may still act.
        let delete = DeleteVm { vm_id: vm.vm_id };
        let error = vm_ops::delete(app, &cx(), delete.clone()).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{error:?}");

        // Then the start goes on, with nobody waiting for it, and the deletion comes after it.
        let context = cx();
        let (deleted, _) = tokio::join!(vm_ops::delete(app, &context, delete.clone()), async { sh("touch /run/go") });
        deleted.unwrap();
        assert_eq!(host.hypervisor().list().await.unwrap().vms, vec![]);
        assert_eq!(sh("pgrep -c qemu-system; virsh list --all --name"), "0");
        let again = vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        assert_eq!(again.power, PowerState::Running);
        vm_ops::delete(app, &cx(), delete).await.unwrap();
        app.networks.purge(&cx().cancel).await.unwrap();
        host.agent.stop().await;
    });
}

#[test]
fn real_a_vm_whose_qemu_hangs_can_be_ended() {
    on_host("faults::real_a_vm_whose_qemu_hangs_can_be_ended", async {
        let host = Host::start_with(|c| c.libvirt.call_timeout_s = 6).await;
        sh("virsh domcapabilities");
        let app = host.app();
        let vm = host.vm(&network(NetworkKind::Isolated, 16), "10.77.16.10", None);
        vm_ops::ensure(app, &cx(), ensure(&vm)).await.unwrap();
        sh("kill -STOP $(pgrep qemu-system)");
        let hung = vm_ops::pause(app, &cx(), PauseVm { vm_id: vm.vm_id }).await;
        assert_eq!(hung.unwrap_err().code, Code::DeadlineExceeded);
        let stop = StopVm { vm_id: vm.vm_id, mode: StopMode::Force, timeout_s: 1 };
        assert_eq!(vm_ops::stop(app, &cx(), stop).await.unwrap().power, PowerState::Stopped);
        vm_ops::delete(app, &cx(), DeleteVm { vm_id: vm.vm_id }).await.unwrap();
        app.networks.purge(&cx().cancel).await.unwrap();
        host.agent.stop().await;
    });
}
