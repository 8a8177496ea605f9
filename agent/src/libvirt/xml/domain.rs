//! A VM as a libvirt domain.

use std::path::PathBuf;

use shared::api::image::Firmware;
use shared::id::VmId;
use shared::wire::host::VirtMode;
use shared::wire::vm::VmSpec;

use super::Element;
use super::device::{Disk, Nic, seed};
use crate::libvirt::metadata::Identity;

/// Slots that stay free for disks that are plugged in while the VM runs.
const FREE_SLOTS: usize = 8;

/// All that a domain is made of: the VM as the controller wants it, and where this host keeps it.
#[derive(Clone, Debug)]
pub struct DomainSpec {
    /// The VM.
    pub vm: VmSpec,
    /// Generation of the command that defines it.
    pub generation: u64,
    /// Whether guests run on the processor.
    pub virt_mode: VirtMode,
    /// Its disks, the root volume first.
    pub disks: Vec<Disk>,
    /// Its cards.
    pub nics: Vec<Nic>,
    /// The seed image for cloud-init.
    pub seed: PathBuf,
    /// File that the serial line is logged to.
    pub serial_log: PathBuf,
}

/// Name of a VM's domain. Not the VM's own name: that may change, and two accounts may use the same.
#[must_use]
pub fn domain_name(vm_id: VmId) -> String {
    format!("kring-{vm_id}")
}

impl DomainSpec {
    /// The definition, ready for libvirt.
    #[must_use]
    pub fn render(&self) -> String {
        let vm = &self.vm;
        let domain_type = match self.virt_mode {
            VirtMode::Kvm => "kvm",
            VirtMode::Emulated => "qemu",
        };
        let timer = |name: &str| Element::new("timer").attr("name", name);
        Element::new("domain")
            .attr("type", domain_type)
            .text_child("name", domain_name(vm.vm_id))
            .text_child("uuid", vm.vm_id)
            .text_child("title", &vm.name)
            .child(Element::new("metadata").child(Identity::of(vm, self.generation).element()))
            .child(Element::new("memory").attr("unit", "KiB").text(vm.memory.0.div_ceil(1024)))
            .child(Element::new("vcpu").attr("placement", "static").text(vm.vcpus))
            .child(self.os())
            .child(Element::new("features").child(Element::new("acpi")).child(Element::new("apic")))
            .child(self.cpu())
            .child(
                Element::new("clock")
                    .attr("offset", "utc")
                    .child(timer("rtc").attr("tickpolicy", "catchup"))
                    .child(timer("pit").attr("tickpolicy", "delay"))
                    .child(timer("hpet").attr("present", "no")),
            )
            .text_child("on_poweroff", "destroy")
            .text_child("on_reboot", "restart")
            // A panicked guest ends as "shut off, crashed": seen as crashed, and it holds no memory.
            .text_child("on_crash", "destroy")
            .child(self.devices())
            .render()
    }

    fn os(&self) -> Element {
        let os = match self.vm.firmware {
            Firmware::Bios => Element::new("os"),
            // Secure Boot would refuse guests whose loader nobody has signed.
            Firmware::Uefi => Element::new("os").attr("firmware", "efi").child(
                Element::new("firmware")
                    .child(Element::new("feature").attr("enabled", "no").attr("name", "secure-boot")),
            ),
        };
        os.child(Element::new("type").attr("arch", "x86_64").attr("machine", "q35").text("hvm"))
    }

    fn cpu(&self) -> Element {
        match self.virt_mode {
            VirtMode::Kvm => Element::new("cpu").attr("mode", "host-passthrough").attr("migratable", "on"),
            VirtMode::Emulated => Element::new("cpu").attr("mode", "maximum"),
        }
    }

    fn devices(&self) -> Element {
        let occupied = self.disks.len() + self.nics.len() + 4;
        let slots = (0..occupied + FREE_SLOTS)
            .map(|_| Element::new("controller").attr("type", "pci").attr("model", "pcie-root-port"));
        Element::new("devices")
            .children(self.disks.iter().zip(1..).map(|(disk, order)| disk.element((order == 1).then_some(order))))
            .child(seed(&self.seed))
            .child(Element::new("controller").attr("type", "pci").attr("model", "pcie-root"))
            .children(slots)
            .child(Element::new("controller").attr("type", "usb").attr("model", "none"))
            .children(self.nics.iter().map(Nic::element))
            .child(
                Element::new("serial")
                    .attr("type", "pty")
                    .child(Element::new("log").attr("file", self.serial_log.display()).attr("append", "on"))
                    .child(Element::new("target").attr("type", "isa-serial").attr("port", 0)),
            )
            .child(
                Element::new("console")
                    .attr("type", "pty")
                    .child(Element::new("target").attr("type", "serial").attr("port", 0)),
            )
            .child(
                Element::new("channel")
                    .attr("type", "unix")
                    .child(Element::new("target").attr("type", "virtio").attr("name", "org.qemu.guest_agent.0")),
            )
            .child(
                Element::new("graphics")
                    .attr("type", "vnc")
                    .attr("port", -1)
                    .attr("autoport", "yes")
                    .attr("listen", "127.0.0.1"),
            )
            .child(Element::new("video").child(Element::new("model").attr("type", "vga").attr("vram", 16384)))
            .child(Element::new("memballoon").attr("model", "virtio"))
            .child(
                Element::new("rng")
                    .attr("model", "virtio")
                    .child(Element::new("backend").attr("model", "random").text("/dev/urandom")),
            )
            .child(Element::new("panic").attr("model", "isa"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use shared::api::image::DiskFormat;
    use shared::api::network::NetworkKind;
    use shared::units::Bytes;
    use shared::wire::host::StorageSpec;
    use shared::wire::network::NetworkSpec;
    use shared::wire::vm::{CloudInit, DiskSpec, NicSpec};
    use shared::wire::volume::VolumeSpec;

    /// A network with fixed ids.
    pub fn network() -> NetworkSpec {
        NetworkSpec {
            network_id: "01939f00-0000-7000-8000-0000ab12cd34".parse().unwrap(),
            kind: NetworkKind::Nat,
            cidr: "10.77.0.0/24".parse().unwrap(),
            gateway: Some("10.77.0.1".parse().unwrap()),
            service_address: "10.77.0.2".parse().unwrap(),
            dns: vec!["192.0.2.53".parse().unwrap()],
            mtu: 1500,
            uplink: None,
            vlan: None,
        }
    }

    /// A VM with fixed ids, one disk, one card.
    pub fn vm() -> VmSpec {
        let volume = VolumeSpec {
            volume_id: "01939f00-0000-7000-8000-000000000002".parse().unwrap(),
            storage: StorageSpec {
                storage_id: "01939f00-0000-7000-8000-000000000003".parse().unwrap(),
                path: "/srv/kring".into(),
                kind: Default::default(),
            },
            format: DiskFormat::Qcow2,
            size: Bytes::gib(1),
            base: None,
        };
        VmSpec {
            vm_id: "01939f00-0000-7000-8000-000000000001".parse().unwrap(),
            name: "web-1".into(),
            vcpus: 2,
            memory: Bytes::mib(256),
            firmware: Firmware::Bios,
            disks: vec![DiskSpec { volume, device: "vda".into() }],
            nics: vec![NicSpec {
                nic_id: "01939f00-0000-7000-8000-000000000004".parse().unwrap(),
                mac: "52:54:00:12:34:56".into(),
                ip: "10.77.0.10".parse().unwrap(),
                network: network(),
            }],
            cloud_init: CloudInit {
                hostname: "web-1".into(),
                ssh_keys: vec!["ssh-ed25519 AAAA me".into()],
                user_data: None,
            },
        }
    }

    /// The same VM as a domain.
    pub fn domain() -> DomainSpec {
        let vm = vm();
        DomainSpec {
            generation: 7,
            virt_mode: VirtMode::Emulated,
            disks: vec![Disk {
                volume_id: vm.disks[0].volume.volume_id,
                path: "/srv/kring/volume.qcow2".into(),
                format: DiskFormat::Qcow2,
                device: "vda".into(),
                direct: true,
            }],
            nics: vec![Nic {
                mac: vm.nics[0].mac.clone(),
                ip: vm.nics[0].ip,
                bridge: "kr-ab12cd34".into(),
                mtu: 1500,
                filtered: true,
            }],
            seed: "/var/lib/kring/vms/1/seed.img".into(),
            serial_log: "/var/lib/kring/vms/1/serial.log".into(),
            vm,
        }
    }

    #[test]
    fn an_emulated_bios_domain() {
        insta::assert_snapshot!("domain_bios_emulated", domain().render());
    }

    #[test]
    fn a_kvm_uefi_domain() {
        let mut spec = domain();
        spec.virt_mode = VirtMode::Kvm;
        spec.vm.firmware = Firmware::Uefi;
        spec.disks[0].direct = false;
        insta::assert_snapshot!("domain_uefi_kvm", spec.render());
    }

    #[test]
    fn hostile_names_and_paths_stay_inside_their_elements() {
        let mut spec = domain();
        let evil = "x'\"></title></metadata><devices><disk type='file'><source file=\"/etc/shadow\"/>\0\u{7}&amp;";
        spec.vm.name = evil.into();
        spec.vm.cloud_init.hostname = evil.into();
        spec.serial_log = format!("/tmp/{evil}").into();
        spec.nics[0].bridge = evil.into();
        let xml = spec.render();
        let read = super::super::read::DomainXml::parse(&xml).unwrap();
        assert_eq!(read.devices.disk.len(), 2);
        insta::assert_snapshot!("domain_hostile", xml);
    }
}
