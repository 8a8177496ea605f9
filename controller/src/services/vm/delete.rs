//! Flow `vm.delete`: begin → delete. The domain goes, the disks stay until the VM is expunged.
//!
//! A host that is away does not hold the deletion up: when it is back, the comparison finds the
//! domain of a deleted VM and removes it.

use async_trait::async_trait;
use shared::api::vm::VmState;
use shared::wire::vm::DeleteVm;
use shared::{Code, Result};

use super::transition::{State, arrive, host_of, transition_flow};
use crate::db::{self, Tx};
use crate::workflow::{At, Step, StepCx};

transition_flow!(
    /// Deletes a VM so that it can be recovered.
    Delete = "vm.delete",
    from &[VmState::Running, VmState::Stopped, VmState::Paused, VmState::Crashed, VmState::Unknown],
    via VmState::Deleting, holds false, then OnHost
);

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "delete"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        match cx.command(host, 0, &DeleteVm { vm_id: state.id }).await {
            Err(error) if error.code == Code::HostUnreachable => {
                tracing::info!(vm.id = %state.id, host.id = %host, "the host is away; the domain is removed when it is back");
                Ok(())
            }
            result => result.map(|_| ()),
        }
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        arrive(tx, at, state.id, VmState::Deleting, VmState::Deleted).await?;
        let row = db::vm::require(tx.conn(), state.id).await?;
        db::vm::set_deleted_at(tx, state.id, &row.vm.name, Some(at.now)).await
    }
}
