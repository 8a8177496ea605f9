//! What the host is: read from `/proc`, `/sys` and `/etc/os-release`, and asked of the hypervisor.
//! Nothing here is kept; what cannot be read stays empty, for facts only inform.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use shared::units::Bytes;
use shared::wire::host::{DiskFact, HostFacts, NicFact, NumaNode, VirtMode};

use crate::app::VERSION;
use crate::config::VirtModeChoice;
use crate::libvirt::Hypervisor;

/// Processor flags that decide where a guest can run and migrate to.
const FLAGS: &[&str] = &[
    "aes",
    "amx_tile",
    "asimd",
    "avx",
    "avx2",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512f",
    "avx512vl",
    "bmi1",
    "bmi2",
    "ept",
    "erms",
    "f16c",
    "fma",
    "fsgsbase",
    "gfni",
    "invpcid",
    "lm",
    "movbe",
    "npt",
    "nx",
    "pclmulqdq",
    "pdpe1gb",
    "popcnt",
    "pcid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "sha_ni",
    "sha2",
    "smap",
    "smep",
    "sse4_1",
    "sse4_2",
    "ssse3",
    "svm",
    "tsc_deadline_timer",
    "umip",
    "vaes",
    "vmx",
    "x2apic",
    "xsave",
    "xsavec",
    "xsaveopt",
    "xsaves",
];

/// Facts of this host. Reads small files; the hypervisor is asked for its versions.
pub async fn gather(hypervisor: &dyn Hypervisor, choice: VirtModeChoice) -> HostFacts {
    let mut facts = tokio::task::spawn_blocking(move || of_kernel(Path::new("/"), choice)).await.unwrap_or_default();
    match hypervisor.versions().await {
        Ok(versions) => (facts.libvirt_version, facts.qemu_version) = (versions.libvirt, versions.qemu),
        Err(error) => tracing::warn!(%error, "the versions of libvirt and QEMU are not known"),
    }
    facts
}

/// How guests run here, and why emulated when they are. The processor is used only when `/dev/kvm`
/// opens *and* it has the flag: a device without the flag hangs its guests in the firmware.
#[must_use]
pub fn virt_mode(choice: VirtModeChoice) -> (VirtMode, String) {
    virt_mode_below(Path::new("/"), choice)
}

/// Why libvirt will be slow here, when it will: root may open `/dev/kvm` and the user that guests run
/// as may not. libvirt probes QEMU as one and checks the result as the other, finds that they differ,
/// and probes anew with every definition of a domain, which takes seconds to minutes each time.
#[must_use]
pub fn kvm_closed_to_guests() -> Option<String> {
    kvm_closed_below(Path::new("/"), &|user| {
        let user = nix::unistd::User::from_name(user).ok()??;
        let name = std::ffi::CString::new(user.name).ok()?;
        let groups = nix::unistd::getgrouplist(&name, user.gid).ok()?;
        Some((user.uid.as_raw(), groups.into_iter().map(nix::unistd::Gid::as_raw).collect()))
    })
}

/// A user's number and those of its groups.
type Ids = (u32, Vec<u32>);

fn kvm_closed_below(root: &Path, ids: &dyn Fn(&str) -> Option<Ids>) -> Option<String> {
    let device = fs::metadata(root.join("dev/kvm")).ok()?;
    let configured = quoted(&read(root, "etc/libvirt/qemu.conf"), "user");
    // What packages build in: Debian's, then that of the others.
    let users = configured.map_or_else(|| vec!["libvirt-qemu".to_string(), "qemu".to_string()], |user| vec![user]);
    let (user, (uid, groups)) = users.into_iter().find_map(|user| Some((user.clone(), ids(&user)?)))?;
    let mode = device.mode();
    let opens = match () {
        () if uid == 0 => true,
        () if device.uid() == uid => mode & 0o600 == 0o600,
        () if groups.contains(&device.gid()) => mode & 0o060 == 0o060,
        () => mode & 0o006 == 0o006,
    };
    (!opens).then(|| {
        format!(
            "guests run as {user}, which may not open /dev/kvm, so libvirt asks QEMU what it can with every definition anew: \
             chgrp kvm /dev/kvm && chmod 660 /dev/kvm (as udev does)"
        )
    })
}

/// The text of `key = "text"` in a configuration of libvirt.
fn quoted(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let value = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
        Some(value.trim_matches('"').to_string())
    })
}

/// Facts that the kernel tells, with `root` for `/`.
fn of_kernel(root: &Path, choice: VirtModeChoice) -> HostFacts {
    let cpuinfo = read(root, "proc/cpuinfo");
    let (virt_mode, virt_reason) = virt_mode_below(root, choice);
    let uname = nix::sys::utsname::uname().ok();
    let of_uname = |f: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|u| f(u).to_string_lossy().into_owned()).unwrap_or_default()
    };
    let present = cpu_flags(&cpuinfo);
    HostFacts {
        hostname: of_uname(nix::sys::utsname::UtsName::nodename),
        os: os_name(&read(root, "etc/os-release")),
        kernel: of_uname(nix::sys::utsname::UtsName::release),
        arch: of_uname(nix::sys::utsname::UtsName::machine),
        cpu_model: cpu_field(&cpuinfo, "model name").or_else(|| cpu_field(&cpuinfo, "CPU part")).unwrap_or_default(),
        cpu_flags: FLAGS.iter().filter(|f| present.iter().any(|p| p == *f)).map(ToString::to_string).collect(),
        cpus: u32::try_from(cpu_list(&read(root, "sys/devices/system/cpu/online")).len()).unwrap_or(0),
        memory: meminfo(&read(root, "proc/meminfo"), "MemTotal:"),
        numa: numa(root),
        disks: disks(root),
        nics: nics(root),
        libvirt_version: String::new(),
        qemu_version: String::new(),
        virt_mode,
        virt_reason,
        agent_version: VERSION.to_string(),
        findings: Vec::new(),
        clock_ms: 0,
    }
}

fn virt_mode_below(root: &Path, choice: VirtModeChoice) -> (VirtMode, String) {
    if choice == VirtModeChoice::Emulated {
        return (VirtMode::Emulated, "the configuration says so".into());
    }
    let flags = cpu_flags(&read(root, "proc/cpuinfo"));
    let opened = fs::OpenOptions::new().read(true).write(true).open(root.join("dev/kvm"));
    match opened {
        _ if choice == VirtModeChoice::Kvm => (VirtMode::Kvm, String::new()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let reason = "there is no /dev/kvm: load the module kvm_intel or kvm_amd, or switch virtualisation on in the firmware";
            (VirtMode::Emulated, reason.into())
        }
        Err(e) => (VirtMode::Emulated, format!("/dev/kvm cannot be opened: {e}")),
        Ok(_) if !flags.iter().any(|f| f == "vmx" || f == "svm") => {
            let reason = "the processor shows neither vmx nor svm: switch virtualisation on in the firmware, or nested virtualisation on in the hypervisor above";
            (VirtMode::Emulated, reason.into())
        }
        Ok(_) => (VirtMode::Kvm, String::new()),
    }
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_default()
}

fn number<T: std::str::FromStr + Default>(root: &Path, path: &str) -> T {
    read(root, path).trim().parse().unwrap_or_default()
}

/// Names of the entries of a folder, in order.
fn entries(root: &Path, path: &str) -> Vec<String> {
    crate::storage::names(&root.join(path)).unwrap_or_default()
}

fn cpu_field(cpuinfo: &str, key: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn cpu_flags(cpuinfo: &str) -> Vec<String> {
    let flags = cpu_field(cpuinfo, "flags").or_else(|| cpu_field(cpuinfo, "Features")).unwrap_or_default();
    flags.split_whitespace().map(str::to_string).collect()
}

fn os_name(os_release: &str) -> String {
    let value = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    value.trim().trim_matches('"').to_string()
}

fn meminfo(text: &str, key: &str) -> Bytes {
    let line = text.lines().find(|l| l.split_whitespace().any(|w| w == key)).unwrap_or_default();
    let kib = line.split_whitespace().skip_while(|w| *w != key).nth(1).and_then(|n| n.parse().ok());
    Bytes::kib(kib.unwrap_or(0))
}

/// Processors in the kernel's notation, such as `0-3,8`.
fn cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            cpus.extend((first..=last).take(1 << 16));
        }
    }
    cpus
}

fn numa(root: &Path) -> Vec<NumaNode> {
    let base = "sys/devices/system/node";
    let mut nodes: Vec<_> = entries(root, base)
        .iter()
        .filter_map(|name| {
            let id = name.strip_prefix("node")?.parse().ok()?;
            let cpus = cpu_list(&read(root, &format!("{base}/{name}/cpulist")));
            let memory = meminfo(&read(root, &format!("{base}/{name}/meminfo")), "MemTotal:");
            Some(NumaNode { id, cpus, memory })
        })
        .collect();
    nodes.sort_by_key(|n| n.id);
    nodes
}

/// Whole disks; not their partitions, nor loop, RAM and optical devices.
fn disks(root: &Path) -> Vec<DiskFact> {
    let real = |name: &String| !["loop", "ram", "zram", "sr", "fd", "dm-", "md"].iter().any(|p| name.starts_with(p));
    let disk = |name: String| {
        let sectors: u64 = number(root, &format!("sys/block/{name}/size"));
        let rotational = number::<u8>(root, &format!("sys/block/{name}/queue/rotational")) == 1;
        (sectors > 0).then(|| DiskFact { size: Bytes(sectors.saturating_mul(512)), rotational, name })
    };
    entries(root, "sys/block").into_iter().filter(real).filter_map(disk).collect()
}

/// Interfaces of the host; not the loopback, nor those that Kring and libvirt make for guests.
fn nics(root: &Path) -> Vec<NicFact> {
    let own = |name: &String| {
        name != "lo"
            && !["vnet", "kr-", "kv-", "ku-", "kp-", "virbr", "tap", "veth"].iter().any(|p| name.starts_with(p))
    };
    let nic = |name: String| NicFact {
        mac: read(root, &format!("sys/class/net/{name}/address")).trim().to_string(),
        up: read(root, &format!("sys/class/net/{name}/operstate")).trim() == "up",
        mtu: number(root, &format!("sys/class/net/{name}/mtu")),
        name,
    };
    let is_nic = |name: &String| root.join(format!("sys/class/net/{name}/address")).exists();
    entries(root, "sys/class/net").into_iter().filter(own).filter(is_nic).map(nic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_processor_is_used_only_with_device_and_flag() {
        let mode = |files: &[(&str, &str)], choice| virt_mode_below(host(files).path(), choice);
        let (kvm, vmx, plain) =
            (("dev/kvm", ""), ("proc/cpuinfo", "flags : fpu vmx\n"), ("proc/cpuinfo", "flags\t: fpu\n"));
        assert_eq!(mode(&[kvm, vmx], VirtModeChoice::Auto), (VirtMode::Kvm, String::new()));
        for (files, why) in [(&[vmx][..], "no /dev/kvm"), (&[kvm, plain], "neither vmx nor svm")] {
            let (mode, reason) = mode(files, VirtModeChoice::Auto);
            assert!(mode == VirtMode::Emulated && reason.contains(why), "{reason}");
        }
        assert_eq!(mode(&[kvm, vmx], VirtModeChoice::Emulated).0, VirtMode::Emulated);
        assert_eq!(mode(&[], VirtModeChoice::Kvm).0, VirtMode::Kvm);
    }

    #[test]
    fn a_device_that_guests_may_not_open_is_told_of() {
        use std::os::unix::fs::PermissionsExt;
        let told = |mode, conf: &str, ids: &dyn Fn(&str) -> Option<Ids>| {
            let root = host(&[("dev/kvm", ""), ("etc/libvirt/qemu.conf", conf)]);
            fs::set_permissions(root.path().join("dev/kvm"), fs::Permissions::from_mode(mode)).unwrap();
            kvm_closed_below(root.path(), ids)
        };
        let group = nix::unistd::getegid().as_raw();
        let debian = |user: &str| (user == "libvirt-qemu").then(|| (64055, vec![64055, group]));
        let reason = told(0o600, "#user = \"x\"\n", &debian).unwrap();
        assert!(reason.contains("libvirt-qemu") && reason.contains("chmod 660"), "{reason}");
        assert_eq!(told(0o660, "", &debian), None);
        assert_eq!(told(0o606, "", &|_| Some((64055, vec![64055, 64056]))), None);
        assert!(told(0o660, "user = \"other\"\n", &|user| (user == "other").then(|| (7, vec![7]))).is_some());
        assert_eq!(told(0o600, "user = \"root\"\n", &|_| Some((0, vec![0]))), None);
        assert_eq!(told(0o600, "", &|_| None), None);
        assert_eq!(kvm_closed_below(host(&[]).path(), &debian), None);
    }

    #[test]
    fn files_of_the_kernel_are_read() {
        let root = host(&[
            ("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu sse4_2 avx svm\n"),
            ("proc/meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\n"),
            ("etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            ("sys/devices/system/cpu/online", "0-2,5\n"),
            ("sys/devices/system/node/node0/cpulist", "0-1\n"),
            ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:  1024 kB\n"),
            ("sys/block/sda/size", "2048\n"),
            ("sys/block/sda/queue/rotational", "1\n"),
            ("sys/block/loop0/size", "8\n"),
            ("sys/class/net/eth0/address", "52:54:00:00:00:01\n"),
            ("sys/class/net/eth0/operstate", "up\n"),
            ("sys/class/net/eth0/mtu", "1500\n"),
            ("sys/class/net/vnet0/address", "x"),
        ]);
        let facts = of_kernel(root.path(), VirtModeChoice::Auto);
        assert_eq!((facts.cpus, facts.memory, facts.os.as_str()), (4, Bytes::mib(2), "Debian GNU/Linux 12"));
        assert_eq!(
            (facts.cpu_model.as_str(), facts.cpu_flags.join(" ").as_str()),
            ("Some CPU @ 2GHz", "avx sse4_2 svm")
        );
        assert_eq!(facts.numa, [NumaNode { id: 0, cpus: vec![0, 1], memory: Bytes::mib(1) }]);
        assert_eq!(facts.disks, [DiskFact { name: "sda".into(), size: Bytes::mib(1), rotational: true }]);
        assert_eq!(facts.nics.len(), 1);
        assert!(facts.nics[0].up && facts.nics[0].mtu == 1500 && facts.nics[0].mac == "52:54:00:00:00:01");
    }
}
