//! Flow `vm.start`: begin (reserves processors and memory) → start.

use async_trait::async_trait;
use shared::Result;
use shared::api::vm::{StopMode, VmState};
use shared::wire::vm::{EnsureVm, StopVm};

use super::spec;
use super::transition::{State, arrive, host_of, transition_flow};
use crate::db::{self, Tx};
use crate::workflow::{At, Step, StepCx};

transition_flow!(
    /// Starts a stopped or crashed VM on the host that has its disks.
    Start = "vm.start", from &[VmState::Stopped, VmState::Crashed], via VmState::Starting, holds true, then OnHost
);

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "start"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let (host, vm) = spec::build(&cx.deps, state.id).await?;
        cx.command(host, 0, &EnsureVm { vm, start: true }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        arrive(tx, at, state.id, VmState::Starting, VmState::Running).await
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        cx.command(host, 0, &StopVm { vm_id: state.id, mode: StopMode::Force, timeout_s: 1 }).await?;
        Ok(())
    }
}
