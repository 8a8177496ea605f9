//! What the verbs that move a VM from one state to another have in common: the state of their flows,
//! and the first step, which takes the VM into its transitional state or back.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shared::api::vm::{StopMode, VmState};
use shared::id::{HostId, VmId, VolumeId};
use shared::wire::host::StorageSpec;
use shared::{Code, Error, Result};

use crate::db::{self, Tx};
use crate::workflow::{At, Step, StepCx};

/// State of the flows that move a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) id: VmId,
    /// What it was when the job was accepted.
    #[serde(default)]
    pub(super) was: Option<VmState>,
    /// How a guest is stopped, for the verbs that stop one.
    #[serde(default)]
    pub(super) mode: StopMode,
    /// How long the guest may take.
    #[serde(default)]
    pub(super) timeout_s: u32,
    /// For an expunge: host and root volume, once they are looked up; the rows are gone when the removal
    /// is owed.
    #[serde(default)]
    pub(super) remains: Option<(HostId, Option<(VolumeId, StorageSpec)>)>,
}

impl State {
    pub(super) fn new(id: VmId) -> Self {
        Self { id, was: None, mode: StopMode::default(), timeout_s: 0, remains: None }
    }
}

/// Takes the VM from any of `from` into the transitional state `via`.
pub(super) struct Begin {
    pub(super) from: &'static [VmState],
    pub(super) via: VmState,
    /// Whether processors and memory must be reserved for what comes.
    pub(super) holds_compute: bool,
}

#[async_trait]
impl Step<State> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let before = db::vm::change(tx, state.id, self.from, self.via, at.generation, at.now).await?;
        if before.vm.state != self.via {
            state.was = Some(before.vm.state);
        }
        if self.holds_compute {
            db::vm::hold_compute(tx, state.id, false).await?;
        }
        Ok(())
    }

    async fn unrecord(&self, tx: &mut Tx, at: &At, state: &State) -> db::Result<()> {
        let now = db::vm::get(tx.conn(), state.id).await?;
        if let Some(was) = state.was
            && now.is_some_and(|row| row.vm.state == self.via)
        {
            db::vm::change(tx, state.id, &[self.via], was, at.generation, at.now).await?;
            if !was.holds_compute() {
                db::vm::drop_compute(tx, state.id).await?;
            }
        }
        Ok(())
    }
}

/// The host that a VM is on.
pub(super) async fn host_of(cx: &StepCx, id: VmId) -> Result<HostId> {
    let vm = cx.deps.db.vms.get(id).await?.ok_or_else(|| Error::not_found("vm", id))?;
    vm.host_id.ok_or_else(|| Error::new(Code::InvalidState, format!("vm {} is on no host", vm.name)))
}

/// The VM has arrived in `to`.
pub(super) async fn arrive(tx: &mut Tx, at: &At, id: VmId, from: VmState, to: VmState) -> db::Result<()> {
    db::vm::change(tx, id, &[from, VmState::Unknown], to, at.generation, at.now).await?;
    if !to.holds_compute() {
        db::vm::drop_compute(tx, id).await?;
    }
    Ok(())
}

/// Declares a flow of two steps: `begin`, and one that does the work on the host.
macro_rules! transition_flow {
    ($(#[$doc:meta])* $flow:ident = $kind:literal, from $from:expr, via $via:expr, holds $holds:literal, then $step:expr) => {
        $(#[$doc])*
        pub(super) struct $flow;

        impl $crate::workflow::Flow for $flow {
            const KIND: &'static str = $kind;
            const NOUN: &'static str = "vm";
            const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2 * 3600);
            type State = $crate::services::vm::transition::State;

            fn resource(state: &Self::State) -> uuid::Uuid {
                shared::id::ResourceId::uuid(state.id)
            }

            fn steps(_: &Self::State) -> Vec<std::sync::Arc<dyn $crate::workflow::Step<Self::State>>> {
                use $crate::services::vm::transition::Begin;
                let begin = Begin { from: $from, via: $via, holds_compute: $holds };
                vec![std::sync::Arc::new(begin), std::sync::Arc::new($step)]
            }
        }
    };
}
pub(super) use transition_flow;
