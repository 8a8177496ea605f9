//! Flow `vm.pause`: begin → pause.

use async_trait::async_trait;
use shared::Result;
use shared::api::vm::VmState;
use shared::wire::vm::{PauseVm, ResumeVm};

use super::transition::{State, arrive, host_of, transition_flow};
use crate::db::{self, Tx};
use crate::workflow::{At, Step, StepCx};

transition_flow!(
    /// Halts the processors of a running VM.
    Pause = "vm.pause", from &[VmState::Running], via VmState::Pausing, holds false, then OnHost
);

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "pause"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        cx.command(host, 0, &PauseVm { vm_id: state.id }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        arrive(tx, at, state.id, VmState::Pausing, VmState::Paused).await
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        cx.command(host, 0, &ResumeVm { vm_id: state.id }).await?;
        Ok(())
    }
}
