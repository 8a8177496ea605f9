//! Flow `vm.resume`: begin → resume.

use async_trait::async_trait;
use shared::Result;
use shared::api::vm::VmState;
use shared::wire::vm::{PauseVm, ResumeVm};

use super::transition::{State, arrive, host_of, transition_flow};
use crate::db::{self, Tx};
use crate::workflow::{At, Step, StepCx};

transition_flow!(
    /// Lets a paused VM run on.
    Resume = "vm.resume", from &[VmState::Paused], via VmState::Resuming, holds false, then OnHost
);

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "resume"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        cx.command(host, 0, &ResumeVm { vm_id: state.id }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        arrive(tx, at, state.id, VmState::Resuming, VmState::Running).await
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        cx.command(host, 0, &PauseVm { vm_id: state.id }).await?;
        Ok(())
    }
}
