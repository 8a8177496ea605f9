//! Messages of the VM service.

use serde::{Deserialize, Serialize};
use shared::api::job::JobRef;
use shared::api::vm::{
    ConsoleKind, ConsoleLog, CreateVm as Body, MigrateVm as MigrateBody, PlacementReport, StopVm as StopBody,
    UpdateVm as UpdateBody, Vm, VmState,
};
use shared::id::{HostId, ResourceId, VmId, VolumeId};
use shared::wire::vm::{PowerState, VmReport};

use super::{changes, creates, reads};
use crate::bus::request;

reads!("vm", "vm.GetVm" => GetVm(VmId), "vm.ListVms" => ListVms, Vm, Read);
creates!("vm.CreateVm" to "vm" => JobRef, CreateVm(VmId, Body), Create);
creates!("vm.PlanVm" to "vm" => PlacementReport, PlanVm(VmId, Body), Create);
changes!(
    /// Starts a stopped or crashed VM.
    "vm.StartVm" to "vm" => JobRef, StartVm(VmId), Write
);
changes!(
    /// Stops a VM.
    "vm.StopVm" to "vm" => JobRef, StopVm(VmId, body: StopBody), Write
);
changes!(
    /// Restarts a running VM.
    "vm.RebootVm" to "vm" => JobRef, RebootVm(VmId, body: StopBody), Write
);
changes!(
    /// Halts the processors of a running VM.
    "vm.PauseVm" to "vm" => JobRef, PauseVm(VmId), Write
);
changes!(
    /// Lets a paused VM run on.
    "vm.ResumeVm" to "vm" => JobRef, ResumeVm(VmId), Write
);
changes!(
    /// Moves a running or paused VM to another host.
    "vm.MigrateVm" to "vm" => JobRef, MigrateVm(VmId, body: MigrateBody), Operate
);
changes!(
    /// Renames a VM, or resizes a stopped one.
    "vm.UpdateVm" to "vm" => Vm, UpdateVm(VmId, body: UpdateBody), Write
);
changes!(
    /// Deletes a VM so that it can be recovered.
    "vm.DeleteVm" to "vm" => JobRef, DeleteVm(VmId), Write
);
changes!(
    /// Brings a deleted VM back, stopped.
    "vm.RecoverVm" to "vm" => JobRef, RecoverVm(VmId), Write
);
changes!(
    /// Removes a deleted VM and its root volume for good.
    "vm.ExpungeVm" to "vm" => JobRef, ExpungeVm(VmId), Write
);

/// Which piece of the serial log is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRange {
    /// First byte; absent for the end of the log.
    pub offset: Option<u64>,
    /// Most bytes.
    pub max: u32,
}

/// Asks for a piece of the serial log. A read: it may be answered anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetConsoleLog {
    /// Which VM.
    pub id: VmId,
    /// Which piece.
    pub range: LogRange,
}
request!("vm.GetConsoleLog" to "vm" => ConsoleLog, GetConsoleLog);
impl crate::bus::ApiRequest for GetConsoleLog {
    const ACTION: crate::auth::Action = crate::auth::Action::Read;
    fn subject(&self) -> Option<(&'static str, uuid::Uuid)> {
        Some(("vm", self.id.uuid()))
    }
}

/// Where the console of a VM is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleRoute {
    /// The host that runs it.
    pub host_id: HostId,
    /// Where the host's agent listens: `address:port`.
    pub address: String,
}

/// Asks whether a console can be opened, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteConsole {
    /// Which VM.
    pub id: VmId,
    /// Which console.
    pub kind: ConsoleKind,
}
request!("vm.RouteConsole" to "vm" => ConsoleRoute, RouteConsole);
impl crate::bus::ApiRequest for RouteConsole {
    const ACTION: crate::auth::Action = crate::auth::Action::Write;
    fn subject(&self) -> Option<(&'static str, uuid::Uuid)> {
        Some(("vm", self.id.uuid()))
    }
}

/// What a host says of one VM, by an event or in answer to a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmObserved {
    /// The VM.
    pub id: VmId,
    /// The host that says it.
    pub host_id: HostId,
    /// What it says; `None`: a complete listing has no such domain, or the domain was undefined.
    pub report: Option<VmReport>,
    /// Version of the VM's row before the host was asked, for what a listing says. `None` for an event,
    /// which may have been overtaken: it only says where to look.
    #[serde(default)]
    pub as_of: Option<i64>,
    /// Whether the host has restarted since it was last compared: what ran there has ended with it.
    #[serde(default)]
    pub rebooted: bool,
}

impl VmObserved {
    /// What the VM does by this; one that a complete listing does not have is off.
    #[must_use]
    pub fn seen(&self) -> VmState {
        match self.report.as_ref().map(|report| report.power) {
            Some(PowerState::Running) => VmState::Running,
            Some(PowerState::Paused) => VmState::Paused,
            Some(PowerState::Crashed) => VmState::Crashed,
            Some(PowerState::Stopped) | None => VmState::Stopped,
        }
    }

    /// Whether the host says what is written. A crash is told once: that the domain is off afterwards does
    /// not make it an orderly stop.
    #[must_use]
    pub fn is_known(&self, written: VmState) -> bool {
        match (written, self.seen()) {
            (VmState::Deleted, _) => self.report.is_none(),
            (VmState::Crashed, VmState::Stopped) => true,
            (written, seen) => written == seen,
        }
    }
}

// Answers whether it was looked at: a VM that a job holds is left to the job, and must be reported again.
request!("vm.VmObserved" to "vm" => bool, VmObserved, about |m| m.id.uuid());

/// The VM's host does not answer: what the VM does is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmLost {
    /// The VM.
    pub id: VmId,
    /// Its host.
    pub host_id: HostId,
}
request!("vm.VmLost" to "vm" => (), VmLost, about |m| m.id.uuid());

/// Attaches a volume; sent by the volume service to the VM's owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachVolumeToVm {
    /// The VM.
    pub vm: VmId,
    /// The volume.
    pub volume: VolumeId,
}
request!("vm.AttachVolumeToVm" to "vm" => JobRef, AttachVolumeToVm, about |m| m.vm.uuid());

/// Detaches a volume; sent by the volume service to the VM's owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachVolumeFromVm {
    /// The VM.
    pub vm: VmId,
    /// The volume.
    pub volume: VolumeId,
}
request!("vm.DetachVolumeFromVm" to "vm" => JobRef, DetachVolumeFromVm, about |m| m.vm.uuid());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_written_is_news() {
        let said = |power: Option<PowerState>| {
            let id = VmId::new();
            let report = power.map(|power| VmReport { vm_id: id, power, generation: 1 });
            VmObserved { id, host_id: HostId::new(), report, as_of: None, rebooted: false }
        };
        let running = Some(PowerState::Running);
        for (written, power, known) in [
            (VmState::Running, running, true),
            (VmState::Paused, Some(PowerState::Paused), true),
            (VmState::Stopped, None, true),
            (VmState::Crashed, Some(PowerState::Stopped), true),
            (VmState::Deleted, None, true),
            (VmState::Running, None, false),
            (VmState::Stopped, running, false),
            (VmState::Unknown, running, false),
            (VmState::Starting, running, false),
            (VmState::Stopped, Some(PowerState::Crashed), false),
            (VmState::Deleted, Some(PowerState::Stopped), false),
        ] {
            assert_eq!(said(power).is_known(written), known, "{written} {power:?}");
        }
    }
}
