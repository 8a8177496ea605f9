//! What an agent tells by itself: `POST /agent/v1/events`.

use serde::{Deserialize, Serialize};

use crate::id::HostId;
use crate::wire::vm::VmReport;

/// Something that happened on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AgentEvent {
    /// A domain changed its state, and the outcome of no command told it.
    VmChanged {
        /// The VM as it is now.
        vm: VmReport,
    },
    /// A domain is gone from libvirt, and no command has removed it.
    VmGone {
        /// The VM.
        vm_id: crate::id::VmId,
    },
    /// The agent started: its tasks are forgotten, the controller should compare.
    AgentStarted,
}

impl AgentEvent {
    /// The VM that it is about, if it is about one.
    #[must_use]
    pub const fn vm_id(&self) -> Option<crate::id::VmId> {
        match self {
            Self::VmChanged { vm } => Some(vm.vm_id),
            Self::VmGone { vm_id } => Some(*vm_id),
            Self::AgentStarted => None,
        }
    }
}

/// A batch of events, in the order in which they happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEvents {
    /// The host; must be the one in the client certificate.
    pub host_id: HostId,
    /// The events.
    pub events: Vec<AgentEvent>,
}
