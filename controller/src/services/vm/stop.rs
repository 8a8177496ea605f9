//! Flow `vm.stop`: begin → stop.

use async_trait::async_trait;
use shared::Result;
use shared::api::vm::VmState;
use shared::wire::vm::StopVm;

use super::transition::{State, arrive, host_of, transition_flow};
use crate::db::{self, Tx};
use crate::workflow::{At, Step, StepCx};

transition_flow!(
    /// Stops a VM; there is no way to take that back, so nothing is undone on the host.
    Stop = "vm.stop", from &[VmState::Running, VmState::Paused, VmState::Unknown], via VmState::Stopping, holds false, then OnHost
);

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "stop"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        cx.command(host, 0, &StopVm { vm_id: state.id, mode: state.mode, timeout_s: state.timeout_s }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        arrive(tx, at, state.id, VmState::Stopping, VmState::Stopped).await
    }
}
