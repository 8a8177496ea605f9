//! Flow `vm.reboot`: begin → reboot.

use async_trait::async_trait;
use shared::Result;
use shared::api::vm::VmState;
use shared::wire::vm::RebootVm;

use super::transition::{State, arrive, host_of, transition_flow};
use crate::db::{self, Tx};
use crate::workflow::{At, Step, StepCx};

transition_flow!(
    /// Restarts a running VM.
    Reboot = "vm.reboot", from &[VmState::Running], via VmState::Rebooting, holds false, then OnHost
);

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "reboot"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        cx.command(host, 0, &RebootVm { vm_id: state.id, mode: state.mode, timeout_s: state.timeout_s }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        arrive(tx, at, state.id, VmState::Rebooting, VmState::Running).await
    }
}
