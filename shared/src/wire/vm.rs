//! Domains on a host.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::api::image::Firmware;
use crate::api::vm::StopMode;
use crate::id::{HostId, NetworkId, NicId, ResourceId, VmId, VolumeId};
use crate::units::Bytes;
use crate::wire::network::NetworkSpec;
use crate::wire::volume::VolumeSpec;

/// What a domain is doing, as libvirt tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// Its processors run.
    Running,
    /// Its processors are halted.
    Paused,
    /// Defined, not running.
    Stopped,
    /// Defined, not running because the guest or QEMU died.
    Crashed,
}

impl PowerState {
    /// The word as JSON has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        }
    }
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The volume.
    pub volume: VolumeSpec,
    /// Device name in the guest, such as `vda`.
    pub device: String,
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// The card.
    pub nic_id: NicId,
    /// Hardware address.
    pub mac: String,
    /// Address given by DHCP; no other may be used.
    pub ip: Ipv4Addr,
    /// The network; set up when it is missing.
    pub network: NetworkSpec,
}

/// What cloud-init in the guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudInit {
    /// Host name.
    pub hostname: String,
    /// Public ssh keys.
    pub ssh_keys: Vec<String>,
    /// User data, as it was given.
    #[serde(default)]
    pub user_data: Option<String>,
}

/// A VM as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The VM; its domain's UUID.
    pub vm_id: VmId,
    /// Its name, for people who look at the host.
    pub name: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Bytes,
    /// How it boots.
    pub firmware: Firmware,
    /// Disks, the root volume first.
    pub disks: Vec<DiskSpec>,
    /// Network cards, in order.
    pub nics: Vec<NicSpec>,
    /// What cloud-init is told.
    pub cloud_init: CloudInit,
}

/// Makes a VM be as its specification says: networks set up, image cached, volumes made, domain
/// defined; and running when `start` is set. What is there already is kept; a running domain is not
/// changed. All in one command, so that a VM costs its host one exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureVm {
    /// The VM as it must be.
    pub vm: VmSpec,
    /// Whether it must be running.
    pub start: bool,
}

/// Stops a VM; a success when it is not running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopVm {
    /// The VM.
    pub vm_id: VmId,
    /// How.
    pub mode: StopMode,
    /// How long the guest may take, in seconds.
    pub timeout_s: u32,
}

/// Restarts a VM: a stop as [`StopVm`] does it, then a start of the same domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebootVm {
    /// The VM.
    pub vm_id: VmId,
    /// How.
    pub mode: StopMode,
    /// How long the guest may take, in seconds.
    pub timeout_s: u32,
}

/// Halts the processors of a VM; a success when they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseVm {
    /// The VM.
    pub vm_id: VmId,
}

/// Lets a paused VM run on; a success when it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeVm {
    /// The VM.
    pub vm_id: VmId,
}

/// Removes a VM's domain, its serial log and its leases, running or not; its volumes stay. A
/// success when it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteVm {
    /// The VM.
    pub vm_id: VmId,
}

/// Attaches a disk to a VM, hot when it runs; makes the volume when it is missing. A success when
/// it is attached as the same device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachVolume {
    /// The VM.
    pub vm_id: VmId,
    /// The disk.
    pub disk: DiskSpec,
}

/// Detaches a disk from a VM, hot when it runs, and waits until the guest has let go. A success
/// when it is not attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachVolume {
    /// The VM.
    pub vm_id: VmId,
    /// The volume.
    pub volume_id: VolumeId,
}

/// Asks for a piece of a VM's serial log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadConsoleLog {
    /// The VM.
    pub vm_id: VmId,
    /// First byte wanted; absent for the end of the log.
    #[serde(default)]
    pub offset: Option<u64>,
    /// Most bytes wanted, at most 256 KiB.
    pub max: u32,
}

/// A VM as it is on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// The VM.
    pub vm_id: VmId,
    /// What it is doing.
    pub power: PowerState,
    /// Newest generation of a command that it was changed by.
    pub generation: u64,
}

/// Makes a host ready to take a VM over while it runs: networks, leases, seed, volumes. Shared volumes must
/// be there; those on the host's own disk are made, of the same size and on the same base. A VM that runs
/// here already is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareMigration {
    /// The VM as it must be.
    pub vm: VmSpec,
    /// The host that will send it: no other is let in.
    pub from: HostId,
}

/// Where the parts of a VM are on the host that takes it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landing {
    /// The bridge of each network.
    pub bridges: Vec<(NetworkId, String)>,
    /// The seed image.
    pub seed: String,
    /// File that the serial line is logged to.
    pub serial_log: String,
    /// Beginning of the paths of the sockets that guest memory and disks come in by.
    pub sockets: String,
    /// Version of libvirt there.
    #[serde(default)]
    pub libvirt_version: String,
}

/// Moves a VM that runs, or is paused, to a host that was made ready. When it fails the VM goes on here. The
/// way to the other host is that host's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateVm {
    /// The VM as it is.
    pub vm: VmSpec,
    /// The host to move to.
    pub to: HostId,
    /// Where that host's agent listens: `address:port`.
    pub address: String,
    /// What that host answered to [`PrepareMigration`].
    pub landing: Landing,
}

/// What is to be done about a migration that may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settle {
    /// Nothing: only look.
    Look,
    /// On the host that sends: end it, so that the VM goes on there, unless it has moved already.
    Abort,
    /// On the host that sends, once it is known that the VM is not on the other one: let it go on.
    GoOn,
}

/// Asks where a VM is in a migration; a success also when there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleMigration {
    /// The VM.
    pub vm_id: VmId,
    /// What is to be done.
    pub act: Settle,
}

/// What a host has of a VM in a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// What the domain is doing; absent when there is none.
    pub power: Option<PowerState>,
    /// Whether it is coming in, or was sent and waits for word: it does not run here as long as that is so.
    pub moving: bool,
}

impl Whereabouts {
    /// Whether the VM is here, and nowhere else.
    #[must_use]
    pub const fn is_here(self) -> bool {
        match self.power {
            Some(PowerState::Running | PowerState::Paused) => !self.moving,
            Some(PowerState::Stopped | PowerState::Crashed) | None => false,
        }
    }
}

/// Takes back what [`PrepareMigration`] did besides volumes. Refused with `in_use` while there is an active
/// domain, be it one that is coming in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbandonMigration {
    /// The VM.
    pub vm_id: VmId,
}

/// A number that is equal for equal sets of VMs in equal states. The order does not matter.
#[must_use]
pub fn digest<'a>(vms: impl IntoIterator<Item = (&'a VmId, &'a PowerState)>) -> u64 {
    vms.into_iter()
        .map(|(id, power)| {
            let mut bytes = [0; 17];
            bytes[..16].copy_from_slice(id.uuid().as_bytes());
            bytes[16] = *power as u8;
            xxhash_rust::xxh3::xxh3_64(&bytes)
        })
        .fold(0, u64::wrapping_add)
}

super::agent_commands! {
    EnsureVm = "vm/ensure" => VmReport, |c| c.vm.vm_id.uuid();
    StopVm = "vm/stop" => VmReport, |c| c.vm_id.uuid();
    RebootVm = "vm/reboot" => VmReport, |c| c.vm_id.uuid();
    PauseVm = "vm/pause" => VmReport, |c| c.vm_id.uuid();
    ResumeVm = "vm/resume" => VmReport, |c| c.vm_id.uuid();
    DeleteVm = "vm/delete" => crate::wire::Empty, |c| c.vm_id.uuid();
    AttachVolume = "vm/attach_volume" => crate::wire::Empty, |c| c.vm_id.uuid();
    DetachVolume = "vm/detach_volume" => crate::wire::Empty, |c| c.vm_id.uuid();
    PrepareMigration = "vm/prepare_migration" => Landing, |c| c.vm.vm_id.uuid();
    MigrateVm = "vm/migrate" => crate::wire::Empty, |c| c.vm.vm_id.uuid();
    SettleMigration = "vm/settle_migration" => Whereabouts, |c| c.vm_id.uuid();
    AbandonMigration = "vm/abandon_migration" => crate::wire::Empty, |c| c.vm_id.uuid();
    ReadConsoleLog = "vm/read_console_log" => crate::api::vm::ConsoleLog, |c| c.vm_id.uuid();
}
