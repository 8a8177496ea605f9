//! What is on a simulated host, as the real one's libvirt, disks and kernel would tell: domains,
//! volumes, cached images, networks. Only data and the rules of the contract; no task, no wire.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};
use shared::api::image::DiskFormat;
use shared::api::storage::StorageKind;
use shared::id::{HostId, ImageId, NetworkId, StorageId, VmId, VolumeId};
use shared::units::Bytes;
use shared::wire::image::{ImageInfo, ImageSpec};
use shared::wire::vm::{DiskSpec, PowerState, VmReport, VmSpec};
use shared::wire::volume::VolumeSpec;
use shared::{Code, Error, Result};

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub power: PowerState,
    /// Newest generation of a command that it was changed by.
    pub generation: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Bytes,
    /// Volumes with their devices.
    pub disks: Vec<(VolumeId, String)>,
    /// Networks of its cards.
    pub networks: Vec<NetworkId>,
}

/// Domains, and how often they may have been changed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Domains {
    map: BTreeMap<VmId, Domain>,
    #[serde(skip)]
    changes: u64,
}

impl PartialEq for Domains {
    fn eq(&self, other: &Self) -> bool {
        self.map == other.map
    }
}

impl Eq for Domains {}

impl Deref for Domains {
    type Target = BTreeMap<VmId, Domain>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl DerefMut for Domains {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.changes += 1;
        &mut self.map
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The storage that keeps it.
    pub storage_id: StorageId,
    /// Size that the guest sees.
    pub size: Bytes,
    /// Format on the storage.
    pub format: DiskFormat,
    /// The image that it is based on.
    pub base: Option<ImageId>,
}

/// Everything on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Domains of Kring.
    pub vms: Domains,
    /// Domains that are not of Kring.
    pub foreign: BTreeSet<String>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Cached images.
    pub images: BTreeMap<ImageId, ImageInfo>,
    /// Networks that are set up.
    pub networks: BTreeSet<NetworkId>,
    /// VMs that may come from other hosts.
    #[serde(default)]
    pub expected: BTreeMap<VmId, HostId>,
    /// Bytes free on the disk; as many as there are in all when absent.
    pub available: Option<Bytes>,
    /// Why libvirt does not answer.
    pub libvirt_error: Option<String>,
    /// Whether guests take no notice of being asked to shut down or to let go of a disk.
    pub deaf_guests: bool,
}

fn gone(vm_id: VmId) -> Error {
    Error::not_found("VM on this host", vm_id)
}

impl State {
    /// The domain of a VM.
    ///
    /// # Errors
    /// `not_found`.
    pub fn domain(&mut self, vm_id: VmId) -> Result<&mut Domain> {
        self.vms.get_mut(&vm_id).ok_or_else(|| gone(vm_id))
    }

    /// A VM as it is reported.
    ///
    /// # Errors
    /// `not_found`.
    pub fn report(&self, vm_id: VmId) -> Result<VmReport> {
        let domain = self.vms.get(&vm_id).ok_or_else(|| gone(vm_id))?;
        Ok(VmReport { vm_id, power: domain.power, generation: domain.generation })
    }

    /// All VMs as they are reported.
    #[must_use]
    pub fn reports(&self) -> Vec<VmReport> {
        self.vms.iter().map(|(vm_id, d)| VmReport { vm_id: *vm_id, power: d.power, generation: d.generation }).collect()
    }

    /// A digest for the ping; `None` while libvirt does not answer.
    #[must_use]
    pub fn digest(&self) -> Option<u64> {
        let power = self.vms.iter().map(|(id, domain)| (id, &domain.power));
        self.libvirt_error.is_none().then(|| shared::wire::vm::digest(power))
    }

    /// How often a domain may have been changed.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.vms.changes
    }

    /// Refuses everything that needs libvirt while it does not answer.
    ///
    /// # Errors
    /// `host_failed`.
    pub fn check_libvirt(&self) -> Result<()> {
        match &self.libvirt_error {
            Some(reason) => Err(Error::new(Code::HostFailed, format!("libvirt does not answer: {reason}"))),
            None => Ok(()),
        }
    }

    /// Makes a volume, or finds it.
    ///
    /// # Errors
    /// `conflict` when it exists otherwise, `invalid_request`, `no_space`.
    pub fn ensure_volume(&mut self, spec: &VolumeSpec) -> Result<()> {
        if spec.size.0 == 0 || !spec.size.0.is_multiple_of(512) {
            return Err(Error::invalid("size", "must be a multiple of 512 bytes, and not zero"));
        }
        if spec.storage.kind == StorageKind::Shared {
            // It lies on no host of its own, and every host finds it.
            return Ok(());
        }
        let wanted = Volume {
            storage_id: spec.storage.storage_id,
            size: spec.size,
            format: spec.format,
            base: spec.base.as_ref().map(|image| image.image_id),
        };
        if let Some(existing) = self.volumes.get(&spec.volume_id) {
            let same = *existing == wanted;
            return if same { Ok(()) } else { Err(Error::new(Code::Conflict, "the volume exists otherwise")) };
        }
        if let Some(base) = &spec.base {
            let info = self.images.get(&base.image_id);
            let info = info.ok_or_else(|| Error::internal("the base of a volume is not in the cache"))?;
            if spec.size < info.virtual_size {
                return Err(Error::invalid("size", "is smaller than the image"));
            }
        }
        if self.available.is_some_and(|left| left < Bytes::mib(1)) {
            return Err(Error::new(Code::NoSpace, "there is no space left on the host's disk"));
        }
        self.volumes.insert(spec.volume_id, wanted);
        Ok(())
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// `in_use` while a domain has it.
    pub fn delete_volume(&mut self, id: VolumeId) -> Result<()> {
        if self.vms.values().any(|vm| vm.disks.iter().any(|(disk, _)| *disk == id)) {
            return Err(Error::new(Code::InUse, "a domain on the host has the volume as a disk"));
        }
        self.volumes.remove(&id);
        Ok(())
    }

    /// Puts an image that was fetched into the cache, after the checks.
    ///
    /// # Errors
    /// `checksum_mismatch`, `image_rejected`, `no_space`.
    pub fn accept_image(&mut self, spec: &ImageSpec, info: &ImageInfo) -> Result<ImageInfo> {
        if spec.sha256.as_ref().is_some_and(|sum| !sum.eq_ignore_ascii_case(&info.sha256)) {
            return Err(Error::new(Code::ChecksumMismatch, "the content has another checksum"));
        }
        if spec.format.is_some_and(|format| format != info.format) {
            return Err(Error::new(Code::ImageRejected, "the content has another format"));
        }
        if info.size > spec.max_size || info.virtual_size > spec.max_virtual_size {
            return Err(Error::new(Code::ImageRejected, "the image is larger than is allowed"));
        }
        if self.available.is_some_and(|left| left < info.size) {
            return Err(Error::new(Code::NoSpace, "there is no space left on the host's disk"));
        }
        Ok(self.images.entry(spec.image_id).or_insert_with(|| info.clone()).clone())
    }

    /// Removes an image from the cache.
    ///
    /// # Errors
    /// `in_use` while a volume is based on it.
    pub fn delete_image(&mut self, id: ImageId) -> Result<()> {
        if self.volumes.values().any(|volume| volume.base == Some(id)) {
            return Err(Error::new(Code::InUse, "a volume on this host is based on the image"));
        }
        self.images.remove(&id);
        Ok(())
    }

    /// Takes a network down.
    ///
    /// # Errors
    /// `in_use` while a domain has a card in it.
    pub fn delete_network(&mut self, id: NetworkId) -> Result<()> {
        if self.vms.values().any(|vm| vm.networks.contains(&id)) {
            return Err(Error::new(Code::InUse, "a VM on this host has a card in the network"));
        }
        self.networks.remove(&id);
        Ok(())
    }

    /// Defines a domain after its specification; one that is active is kept as it is.
    ///
    /// # Errors
    /// `invalid_request` for a specification that makes no sense.
    pub fn define(&mut self, spec: &VmSpec, start: bool, generation: u64) -> Result<VmReport> {
        if spec.disks.is_empty() || spec.vcpus == 0 || spec.memory.0 == 0 {
            return Err(Error::invalid("vm", "a VM needs a root volume, processors and memory"));
        }
        let active = self.vms.get(&spec.vm_id).is_some_and(|d| is_active(d.power));
        if active {
            let domain = self.domain(spec.vm_id)?;
            domain.generation = domain.generation.max(generation);
            if start && domain.power == PowerState::Paused {
                domain.power = PowerState::Running;
            }
            return self.report(spec.vm_id);
        }
        let domain = Domain {
            name: spec.name.clone(),
            power: if start { PowerState::Running } else { PowerState::Stopped },
            generation,
            vcpus: spec.vcpus,
            memory: spec.memory,
            disks: spec.disks.iter().map(|d| (d.volume.volume_id, d.device.clone())).collect(),
            networks: spec.nics.iter().map(|nic| nic.network.network_id).collect(),
        };
        self.vms.insert(spec.vm_id, domain);
        self.report(spec.vm_id)
    }

    /// Attaches a disk whose volume exists.
    ///
    /// # Errors
    /// `invalid_state` when the device is taken or the volume is attached as another one; `not_found`.
    pub fn attach(&mut self, vm_id: VmId, disk: &DiskSpec) -> Result<()> {
        let domain = self.domain(vm_id)?;
        let wanted = (disk.volume.volume_id, disk.device.clone());
        if domain.disks.contains(&wanted) {
            return Ok(());
        }
        if domain.disks.iter().any(|(volume, device)| *volume == wanted.0 || *device == wanted.1) {
            return Err(Error::new(Code::InvalidState, "the device is taken or the volume is attached as another"));
        }
        domain.disks.push(wanted);
        Ok(())
    }

    /// Detaches a disk. False while the guest does not let go.
    ///
    /// # Errors
    /// `not_found`.
    pub fn detach(&mut self, vm_id: VmId, volume_id: VolumeId) -> Result<bool> {
        let deaf = self.deaf_guests;
        let domain = self.domain(vm_id)?;
        let attached = domain.disks.iter().any(|(volume, _)| *volume == volume_id);
        if attached && deaf && is_active(domain.power) {
            return Ok(false);
        }
        domain.disks.retain(|(volume, _)| *volume != volume_id);
        Ok(true)
    }
}

/// Whether a domain has a QEMU process.
#[must_use]
pub const fn is_active(power: PowerState) -> bool {
    match power {
        PowerState::Running | PowerState::Paused => true,
        PowerState::Stopped | PowerState::Crashed => false,
    }
}

/// Every volume, network and image that a specification names must be there before the domain.
pub(super) fn parts(spec: &VmSpec) -> (Vec<NetworkId>, Vec<&VolumeSpec>, Vec<&ImageSpec>) {
    let networks = spec.nics.iter().map(|nic| nic.network.network_id).collect();
    let volumes: Vec<_> = spec.disks.iter().map(|disk| &disk.volume).collect();
    let images = volumes.iter().filter_map(|volume| volume.base.as_ref()).collect();
    (networks, volumes, images)
}
