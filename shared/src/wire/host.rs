//! Joining, facts, ping and inventory of a host.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::storage::StorageKind;
use crate::id::{HostId, ImageId, NetworkId, StorageId, VolumeId};
use crate::name::Name;
use crate::units::Bytes;
use crate::wire::vm::VmReport;

/// Whether guests run on the processor or in emulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VirtMode {
    /// `/dev/kvm` opens and the processor has `vmx` or `svm`.
    Kvm,
    /// QEMU's emulation: correct, and slow.
    #[default]
    Emulated,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NumaNode {
    /// Its number.
    pub id: u32,
    /// Its processors.
    pub cpus: Vec<u32>,
    /// Its memory.
    pub memory: Bytes,
}

/// A block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DiskFact {
    /// Kernel name, such as `sda`.
    pub name: String,
    /// Size.
    pub size: Bytes,
    /// Whether it has moving parts.
    pub rotational: bool,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NicFact {
    /// Kernel name, such as `eth0`.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// Whether it has a link.
    pub up: bool,
    /// Largest packet.
    pub mtu: u32,
}

/// How well one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Poor,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    /// How well it is.
    pub grade: Grade,
    /// What was looked at, such as `libvirt`.
    pub what: String,
    /// What was found, and what to do.
    pub text: String,
}

/// A clock that is further off than this will make certificates and tokens fail.
const MOST_SKEW_MS: i64 = 30_000;

impl Finding {
    fn new(grade: Grade, what: &str, text: impl Into<String>) -> Self {
        Self { grade, what: what.to_string(), text: text.into() }
    }

    /// As it should be.
    #[must_use]
    pub fn good(what: &str, text: impl Into<String>) -> Self {
        Self::new(Grade::Good, what, text)
    }

    /// Works, but not well.
    #[must_use]
    pub fn poor(what: &str, text: impl Into<String>) -> Self {
        Self::new(Grade::Poor, what, text)
    }

    /// Does not work.
    #[must_use]
    pub fn bad(what: &str, text: impl Into<String>) -> Self {
        Self::new(Grade::Bad, what, text)
    }

    /// What is found of a host's clock that is so far ahead of a controller's, in milliseconds.
    #[must_use]
    pub fn of_clock(ahead_ms: i64) -> Self {
        if ahead_ms.abs() <= MOST_SKEW_MS {
            return Self::good("clock", "is the controller's");
        }
        let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
        let seconds = (ahead_ms / 1000).abs();
        Self::bad("clock", format!("is {seconds} s {side} the controller's: set it (timedatectl, chrony)"))
    }
}

/// A line of a report.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.grade {
            Grade::Good => "ok  ",
            Grade::Poor => "warn",
            Grade::Bad => "FAIL",
        };
        write!(f, "{mark}  {:<20}{}", self.what, self.text)
    }
}

/// The numbers of a release such as `9.0.1`, to be compared with another's. What is no number counts as 0.
#[must_use]
pub fn release_numbers(release: &str) -> Vec<u32> {
    release.split('.').map(|number| number.parse().unwrap_or(0)).collect()
}

/// What an agent found on its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct HostFacts {
    /// Host name.
    pub hostname: String,
    /// Operating system, as `/etc/os-release` names it.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Architecture, such as `x86_64`.
    pub arch: String,
    /// Processor model.
    pub cpu_model: String,
    /// Processor flags that matter for placing and migrating guests.
    pub cpu_flags: Vec<String>,
    /// Processors online.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// NUMA nodes.
    pub numa: Vec<NumaNode>,
    /// Block devices.
    pub disks: Vec<DiskFact>,
    /// Network interfaces.
    pub nics: Vec<NicFact>,
    /// Version of libvirt, such as `9.0.0`.
    pub libvirt_version: String,
    /// Version of QEMU.
    pub qemu_version: String,
    /// Whether guests run on the processor or in emulation.
    pub virt_mode: VirtMode,
    /// Why it is `emulated`, when it is.
    pub virt_reason: String,
    /// Version of the agent.
    pub agent_version: String,
    /// What is not as it should be, with what to do.
    pub findings: Vec<Finding>,
    /// The host's clock when this was found, in milliseconds since the epoch; 0 when it was not told.
    pub clock_ms: i64,
}

/// `POST /agent/v1/join`, without a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The one-time token.
    pub token: String,
    /// Name of the host; the controller refuses one that is taken by another host.
    pub name: Name,
    /// Certificate request in PEM. Only its public key is used.
    pub csr: String,
    /// Port that the agent listens on.
    pub port: u16,
    /// Address that the controller reaches the agent at; default the address that this request comes from.
    #[serde(default)]
    pub address: Option<String>,
    /// The id of an earlier life of this host, to take it up again after a reinstallation.
    #[serde(default)]
    pub host_id: Option<HostId>,
    /// What the agent found.
    pub facts: HostFacts,
}

/// The answer to [`Join`] and [`Renew`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The host's id, also in its certificate.
    pub host_id: HostId,
    /// The certificate, PEM.
    pub certificate: String,
    /// The certificate authority, PEM.
    pub ca: String,
    /// Addresses of all controllers; none when the controller does not tell.
    #[serde(default)]
    pub controllers: Vec<String>,
}

/// `POST /agent/v1/renew`, with the client certificate that is about to expire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// Certificate request in PEM. Only its public key is used.
    pub csr: String,
}

/// The answer to `GET /v1/ping`. It never waits for libvirt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Whom the controller reached.
    pub host_id: HostId,
    /// Kernel boot id: another one means that the host was restarted.
    pub boot_id: Uuid,
    /// Id of this agent process: another one means that its tasks are forgotten.
    pub agent_id: Uuid,
    /// Version of the agent.
    pub agent_version: String,
    /// [`crate::wire::vm::digest`] of the VMs as libvirt last told; `None` while libvirt does not answer.
    pub digest: Option<u64>,
    /// How often what a VM does has changed since this process began: the digest alone does not show that
    /// one stopped and runs again. Absent from older agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<u64>,
    /// Whether libvirt answers; when not, why.
    #[serde(default)]
    pub libvirt_error: Option<String>,
}

/// A file system that a storage lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageReport {
    /// The storage.
    pub storage_id: StorageId,
    /// Bytes of the file system.
    pub total: Bytes,
    /// Bytes free for ordinary users.
    pub available: Bytes,
    /// Why a shared storage cannot be used on this host; its volumes are then not listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A storage that the agent shall look at; sent with `POST /v1/commands/host/inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageSpec {
    /// The storage.
    pub storage_id: StorageId,
    /// Absolute path of its folder, made when it is missing; or of the mount point of a shared storage.
    pub path: String,
    /// Its kind.
    #[serde(default)]
    pub kind: StorageKind,
}

/// Asks for the facts and everything of Kring that is on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectHost {
    /// The host that is meant; another one refuses.
    pub host_id: HostId,
    /// Storages to look at.
    pub storages: Vec<StorageSpec>,
}

/// Everything of Kring that is on a host. An agent that cannot read one of these answers with an
/// error rather than with a list that is too short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// What the agent found.
    pub facts: HostFacts,
    /// Domains of Kring, running or not.
    pub vms: Vec<VmReport>,
    /// Names of running domains that are not of Kring.
    pub foreign_domains: Vec<String>,
    /// Volumes by storage.
    pub volumes: Vec<(StorageId, VolumeId)>,
    /// Cached images.
    pub images: Vec<ImageId>,
    /// Networks that are set up.
    pub networks: Vec<NetworkId>,
    /// The file systems of the storages.
    pub storages: Vec<StorageReport>,
}

super::agent_commands! {
    InspectHost = "host/inspect" => Inventory, |c| crate::id::ResourceId::uuid(c.host_id);
}
