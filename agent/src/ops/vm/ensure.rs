//! `vm/ensure`: a VM as its specification says, and running when that is asked for.
//!
//! ```text
//! networks ─┐
//!           ├─▶ leases ─▶ seed ─▶ define (generation in the metadata) ─▶ start
//! volumes ──┘
//! ```
//!
//! When it fails or is cut off, a domain that was not there before is taken away again; volumes stay,
//! they are the business of the controller's undo.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use shared::id::{NetworkId, VmId};
use shared::wire::vm::{EnsureVm, PowerState, VmReport, VmSpec};
use shared::{Error, Result};

use super::{present, report};
use crate::app::App;
use crate::cloud_init::{GuestData, vm_dir};
use crate::facts;
use crate::libvirt::xml::device::{Disk, Nic};
use crate::libvirt::xml::domain::DomainSpec;
use crate::storage::local;
use crate::task::TaskCx;

/// Makes a VM be as its specification says.
///
/// # Errors
/// Those of images, volumes, networks and the hypervisor; `invalid_request` for a specification that
/// makes no sense.
pub async fn ensure(app: &Arc<App>, cx: &TaskCx, command: EnsureVm) -> Result<VmReport> {
    let vm = &command.vm;
    check(vm)?;
    let before = cx.until_cancelled(app.hypervisor.get(vm.vm_id)).await?;
    match before.as_ref().map(|b| b.power) {
        Some(PowerState::Running | PowerState::Paused) => return keep(app, cx, &command).await,
        Some(PowerState::Stopped | PowerState::Crashed) | None => {}
    }
    let result = build(app, cx, &command).await;
    if let (Err(error), None) = (&result, &before) {
        tracing::warn!(vm.id = %vm.vm_id, error = error.chain(), "the VM could not be made; its domain is taken away");
        take_back(app, vm.vm_id).await;
    }
    result
}

/// What no host can make sense of, said before anything is touched.
pub(super) fn check(vm: &VmSpec) -> Result<()> {
    if vm.disks.is_empty() {
        return Err(Error::invalid("vm.disks", "a VM needs a root volume"));
    }
    for (n, disk) in vm.disks.iter().enumerate() {
        let device = &disk.device;
        let letters = device.strip_prefix("vd").unwrap_or_default();
        if letters.len() != 1 || !letters.bytes().all(|b| b.is_ascii_lowercase()) {
            return Err(Error::invalid(format!("vm.disks[{n}].device"), "must be vda to vdz"));
        }
        if vm.disks[..n].iter().any(|d| d.device == *device) {
            return Err(Error::invalid(format!("vm.disks[{n}].device"), "two disks cannot be the same device"));
        }
    }
    if vm.vcpus == 0 || vm.memory.0 == 0 {
        return Err(Error::invalid("vm", "a VM needs processors and memory"));
    }
    Ok(())
}

/// A VM that is active: its domain is not changed, what is around it is repaired.
async fn keep(app: &Arc<App>, cx: &TaskCx, command: &EnsureVm) -> Result<VmReport> {
    let vm = &command.vm;
    let report = present(app, cx, vm.vm_id).await?;
    ensure_networks(app, cx, vm).await?;
    add_leases(app, cx, vm).await?;
    if !(command.start && report.power == PowerState::Paused) {
        return Ok(report);
    }
    cx.until_cancelled(app.hypervisor.resume(vm.vm_id)).await?;
    super::report(app, cx, vm.vm_id).await
}

async fn build(app: &Arc<App>, cx: &TaskCx, command: &EnsureVm) -> Result<VmReport> {
    let vm = &command.vm;
    cx.progress(5, "preparing networks and volumes");
    let (bridges, files) = futures_util::try_join!(ensure_networks(app, cx, vm), ensure_volumes(app, cx, vm))?;
    cx.check()?;
    cx.progress(80, "defining the VM");
    add_leases(app, cx, vm).await?;
    let spec = domain_spec(app, cx, vm, &bridges, files).await?;
    cx.until_cancelled(app.hypervisor.define(&spec)).await?;
    if command.start {
        cx.progress(90, "starting the VM");
        super::start(app, cx, vm.vm_id).await?;
        tracing::info!(vm.id = %vm.vm_id, vm.name = vm.name, "started");
    }
    report(app, cx, vm.vm_id).await
}

/// Sets the networks of all cards up; answers with their bridges.
pub(super) async fn ensure_networks(app: &Arc<App>, cx: &TaskCx, vm: &VmSpec) -> Result<HashMap<NetworkId, String>> {
    let mut bridges = HashMap::new();
    for nic in &vm.nics {
        if let Entry::Vacant(entry) = bridges.entry(nic.network.network_id) {
            entry.insert(cx.until_cancelled(app.networks.ensure(&nic.network, &cx.cancel)).await?);
        }
    }
    Ok(bridges)
}

pub(super) async fn ensure_volumes(app: &Arc<App>, cx: &TaskCx, vm: &VmSpec) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for disk in &vm.disks {
        files.push(local::ensure(app, cx, &disk.volume).await?);
    }
    Ok(files)
}

pub(super) async fn add_leases(app: &Arc<App>, cx: &TaskCx, vm: &VmSpec) -> Result<()> {
    for nic in &vm.nics {
        cx.until_cancelled(app.networks.add_nic(vm.vm_id, &vm.cloud_init.hostname, nic)).await?;
    }
    Ok(())
}

async fn domain_spec(
    app: &Arc<App>,
    cx: &TaskCx,
    vm: &VmSpec,
    bridges: &HashMap<NetworkId, String>,
    files: Vec<PathBuf>,
) -> Result<DomainSpec> {
    let dir = vm_dir(&app.config.agent.data_dir, vm.vm_id);
    let (data, folder) = (GuestData::of(vm), dir.clone());
    let (seed, direct) = tokio::task::spawn_blocking(move || {
        let seed = data.write(&folder)?;
        Ok::<_, crate::storage::FileError>((
            seed,
            files.into_iter().map(|f| (takes_direct_io(&f), f)).collect::<Vec<_>>(),
        ))
    })
    .await
    .map_err(Error::internal)??;
    let disks = vm.disks.iter().zip(direct).map(|(disk, (direct, path))| Disk {
        volume_id: disk.volume.volume_id,
        path,
        format: disk.volume.format,
        device: disk.device.clone(),
        direct,
    });
    let nics = vm.nics.iter().map(|nic| Nic {
        mac: nic.mac.clone(),
        ip: nic.ip,
        bridge: bridges.get(&nic.network.network_id).cloned().unwrap_or_default(),
        mtu: nic.network.mtu,
        filtered: app.config.network.anti_spoofing,
    });
    Ok(DomainSpec {
        vm: vm.clone(),
        generation: cx.generation(),
        virt_mode: facts::virt_mode(app.config.libvirt.virt_mode).0,
        disks: disks.collect(),
        nics: nics.collect(),
        seed,
        serial_log: dir.join("serial.log"),
    })
}

/// Whether the file system of a volume takes direct I/O; `tmpfs` and some overlays do not.
pub fn takes_direct_io(path: &Path) -> bool {
    OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path).is_ok()
}

/// Takes a domain away that this command has made. It goes on when the command is cancelled: what it
/// does is bounded by the hypervisor's own deadlines. A call that this command has given up is taken
/// back by the hypervisor itself, which this waits for; what cannot be waited for any longer is left
/// to `vm/delete`.
async fn take_back(app: &Arc<App>, vm_id: VmId) {
    let undone = async {
        app.hypervisor.destroy(vm_id).await?;
        app.hypervisor.undefine(vm_id).await?;
        app.networks.remove_vm(vm_id).await?;
        Ok::<_, Error>(())
    };
    if let Err(error) = undone.await {
        tracing::error!(vm.id = %vm_id, error = error.chain(), "what was made of the VM could not be taken away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::vm;

    #[test]
    fn a_specification_without_sense_is_refused_by_its_field() {
        assert!(check(&vm()).is_ok());
        let mut twice = vm();
        twice.disks.push(twice.disks[0].clone());
        let mut strange = vm();
        strange.disks[0].device = "vda' bus='".into();
        let mut none = vm();
        none.disks.clear();
        for (bad, field) in [(twice, "vm.disks[1].device"), (strange, "vm.disks[0].device"), (none, "vm.disks")] {
            assert_eq!(check(&bad).unwrap_err().fields[0].field, field);
        }
    }
}
