//! The hypervisor: what the rest of the agent asks of it ([`Hypervisor`]), and libvirt behind it.
//!
//! - [`real`]: libvirt through its C library, on the threads of [`pool`]; calls that hang cost their
//!   caller an error and the pool a thread, and nobody else anything.
//! - [`lane`]: calls about one VM are inside libvirt one after the other. Together with the pool it
//!   keeps the rule: the order of effects is the order of commands, and a call whose caller has given
//!   up leaves none.
//! - [`cache`]: the power state of every VM as libvirt last told, kept by its events; what a ping answers.
//! - [`event`], which registers for libvirt's events, and [`abort`]: the modules with `unsafe`.
//! - [`migration`]: moving a domain to another host.
//! - [`xml`]: all documents; [`metadata`]: what makes a domain one of Kring's.
//!
//! Nothing outside this folder speaks to libvirt.

mod abort;
pub mod cache;
mod calls;
mod disks;
pub mod event;
mod filters;
pub mod lane;
pub mod metadata;
pub mod migration;
pub mod pool;
pub mod real;
mod watch;
pub mod xml;

use std::time::Duration;

use async_trait::async_trait;
use shared::Code;
use shared::id::{VmId, VolumeId};
use shared::wire::event::AgentEvent;
use shared::wire::vm::{PowerState, VmReport, Whereabouts};
use tokio::sync::broadcast;

use self::metadata::Identity;
use self::migration::Migration;
use self::xml::device::Disk;
use self::xml::domain::DomainSpec;

/// Why the hypervisor did not do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no connection to libvirt.
    #[error("libvirt does not answer: {reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// The call took longer than it may. When it ends after all, its effect is taken back.
    #[error("libvirt did not finish {call} within {} s", .after.as_secs())]
    Hung {
        /// The call.
        call: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// An earlier call about the VM, whose caller has given up, is still inside libvirt.
    #[error("libvirt still works on an earlier call about VM {vm_id}, also after {} s; try again later", .after.as_secs())]
    Occupied {
        /// The VM.
        vm_id: VmId,
        /// How long it was waited for.
        after: Duration,
    },
    /// Every thread for calls is busy and the queue is full.
    #[error("too many calls to libvirt are waiting")]
    Busy,
    /// libvirt has no such domain.
    #[error("there is no domain of VM {0}")]
    NoDomain(VmId),
    /// The domain is in a state that does not allow it, such as one that does not run.
    #[error("{call} is not possible in the domain's state: {message}")]
    WrongState {
        /// The call.
        call: &'static str,
        /// libvirt's words.
        message: String,
    },
    /// The guest agent did not do it.
    #[error("the guest agent does not answer: {0}")]
    GuestAgent(String),
    /// A domain of this id or name exists that is not Kring's, or its metadata cannot be read.
    #[error("the domain {name} is not one that Kring can take: {why}")]
    Foreign {
        /// The domain's name.
        name: String,
        /// Why.
        why: String,
    },
    /// What libvirt told makes no sense.
    #[error("libvirt's answer to {call} cannot be read: {why}")]
    Unreadable {
        /// The call.
        call: &'static str,
        /// Why.
        why: String,
    },
    /// Anything else.
    #[error("libvirt could not {call}: {message}")]
    Failed {
        /// The call.
        call: &'static str,
        /// libvirt's words.
        message: String,
    },
}

impl From<Error> for shared::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NoDomain(_) => Code::NotFound,
            Error::Busy | Error::Occupied { .. } | Error::Unreachable { .. } => Code::Unavailable,
            Error::Hung { .. } => Code::DeadlineExceeded,
            Error::WrongState { .. } => Code::InvalidState,
            Error::Foreign { .. } => Code::Conflict,
            Error::Failed { message, .. } if message.contains("No space left on device") => Code::NoSpace,
            Error::GuestAgent(_) | Error::Unreadable { .. } | Error::Failed { .. } => Code::HostFailed,
        };
        let detail = error.to_string();
        Self::new(code, detail.clone()).with_detail(detail)
    }
}

/// All domains of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Kring's, running or not.
    pub vms: Vec<VmReport>,
    /// Names of running domains that are not Kring's.
    pub foreign: Vec<String>,
}

/// Versions of what runs the guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// libvirt's, such as `9.0.0`.
    pub libvirt: String,
    /// QEMU's.
    pub qemu: String,
}

/// How a guest is asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownBy {
    /// By the guest agent when it is connected, by the power button otherwise.
    Any,
    /// By the power button (ACPI).
    Acpi,
}

/// Where a VM's console is on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consoles {
    /// Terminal of the serial line.
    pub serial: Option<String>,
    /// Port of the VNC server on the loopback address.
    pub vnc_port: Option<u16>,
}

/// All VMs as libvirt last told, in two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// [`shared::wire::vm::digest`] of what they do.
    pub digest: u64,
    /// How often that has changed since this process began.
    pub changes: u64,
}

/// What the agent asks of the hypervisor. Every call ends by its own deadline; none holds a thread
/// of the async runtime.
///
/// Calls about one VM that look at its state or change it take effect in the order in which they are
/// made. One that is given up (by its deadline, or by dropping its future) has no effect in the end,
/// and holds up those behind it until that is so.
///
/// "Start" of a running domain, "destroy" of a stopped one and the like are successes: verbs name
/// the state that is wanted.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Every domain of the host.
    async fn list(&self) -> Result<Listing, Error>;
    /// One VM; `None` when it has no domain.
    async fn get(&self, vm_id: VmId) -> Result<Option<VmReport>, Error>;
    /// What a VM's domain says of itself; `None` when there is no domain.
    async fn identity(&self, vm_id: VmId) -> Result<Option<Identity>, Error>;
    /// What every domain of Kring says of itself.
    async fn identities(&self) -> Result<Vec<Identity>, Error>;
    /// Newest generation that changed a VM; `None` when it has no domain.
    async fn generation(&self, vm_id: VmId) -> Result<Option<u64>, Error> {
        Ok(self.identity(vm_id).await?.map(|identity| identity.generation))
    }
    /// Records a generation; an older one than is recorded changes nothing.
    async fn set_generation(&self, vm_id: VmId, generation: u64) -> Result<(), Error>;
    /// Defines a domain, or replaces the definition of one that does not run.
    async fn define(&self, spec: &DomainSpec) -> Result<(), Error>;
    /// Starts a domain.
    async fn start(&self, vm_id: VmId) -> Result<(), Error>;
    /// Asks the guest to shut down, and does not wait for it.
    async fn shutdown(&self, vm_id: VmId, by: ShutdownBy) -> Result<(), Error>;
    /// Ends a domain at once; also one in whose QEMU an earlier call hangs, which then ends as well.
    async fn destroy(&self, vm_id: VmId) -> Result<(), Error>;
    /// Halts the processors.
    async fn suspend(&self, vm_id: VmId) -> Result<(), Error>;
    /// Lets the processors run on.
    async fn resume(&self, vm_id: VmId) -> Result<(), Error>;
    /// Removes the definition of a domain that does not run; a success when there is none.
    async fn undefine(&self, vm_id: VmId) -> Result<(), Error>;
    /// Plugs a disk in, into the running domain (when it runs) and into its definition, and records
    /// it in the metadata. A success when the volume is plugged in as the same device.
    async fn attach_disk(&self, vm_id: VmId, disk: &Disk) -> Result<(), Error>;
    /// Plugs a disk out. While the guest of a running domain has not let go yet the answer is `false`:
    /// ask again after a change. When it has, the definition and the metadata lose the disk as well.
    async fn detach_disk(&self, vm_id: VmId, volume_id: VolumeId) -> Result<bool, Error>;
    /// Paths of the files that running domains (Kring's or not) have as disks.
    async fn disk_paths(&self) -> Result<Vec<std::path::PathBuf>, Error>;
    /// A domain's XML as it is now.
    async fn dumpxml(&self, vm_id: VmId) -> Result<String, Error>;
    /// Where a running VM's consoles are.
    async fn consoles(&self, vm_id: VmId) -> Result<Consoles, Error>;
    /// Makes ready what a domain that comes in from another host refers to.
    async fn prepare_incoming(&self) -> Result<(), Error>;
    /// Moves a running or paused domain to another host, however long that takes; when it fails, or is ended,
    /// the domain goes on here. Dropping the future does not end it: [`Hypervisor::abort_migration`] does.
    async fn migrate(&self, vm_id: VmId, migration: Migration) -> Result<(), Error>;
    /// How far the migration of a VM is, in percent; `None` when none is under way.
    async fn migration_progress(&self, vm_id: VmId) -> Result<Option<u8>, Error>;
    /// Tells a migration to end; a success when none is under way. It has ended when there is no progress any more.
    async fn abort_migration(&self, vm_id: VmId) -> Result<(), Error>;
    /// Where a VM is in a migration.
    async fn whereabouts(&self, vm_id: VmId) -> Result<Whereabouts, Error>;
    /// Removes the network filters that the agent has defined and that nobody uses.
    async fn remove_filters(&self) -> Result<(), Error>;
    /// Versions of libvirt and QEMU.
    async fn versions(&self) -> Result<Versions, Error>;
    /// All VMs in two numbers, from memory: never waits. When they are not known, why.
    fn summary(&self) -> Result<Summary, String>;
    /// The power state of a VM, from memory: never waits. `None` when it is not known.
    fn power(&self, vm_id: VmId) -> Option<PowerState>;
    /// Tells what changes from now on. A receiver that lags must compare a full list.
    fn events(&self) -> broadcast::Receiver<AgentEvent>;
    /// A counter that moves with everything that libvirt tells of a domain, devices included: for
    /// waiting until a condition holds without polling on a clock.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;
}
