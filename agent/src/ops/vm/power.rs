//! `vm/pause` and `vm/resume`.

use std::sync::Arc;

use shared::wire::vm::{PauseVm, PowerState, ResumeVm, VmReport};
use shared::{Code, Error, Result};

use super::{present, report};
use crate::app::App;
use crate::task::TaskCx;

/// Halts the processors of a VM.
///
/// # Errors
/// `invalid_state` when it does not run; `not_found`.
pub async fn pause(app: &Arc<App>, cx: &TaskCx, command: PauseVm) -> Result<VmReport> {
    let now = present(app, cx, command.vm_id).await?;
    match now.power {
        PowerState::Paused => return Ok(now),
        PowerState::Running => cx.until_cancelled(app.hypervisor.suspend(command.vm_id)).await?,
        PowerState::Stopped | PowerState::Crashed => return Err(not_active("paused")),
    }
    report(app, cx, command.vm_id).await
}

/// Lets a paused VM run on.
///
/// # Errors
/// `invalid_state` when it is stopped; `not_found`.
pub async fn resume(app: &Arc<App>, cx: &TaskCx, command: ResumeVm) -> Result<VmReport> {
    let now = present(app, cx, command.vm_id).await?;
    match now.power {
        PowerState::Running => return Ok(now),
        PowerState::Paused => cx.until_cancelled(app.hypervisor.resume(command.vm_id)).await?,
        PowerState::Stopped | PowerState::Crashed => return Err(not_active("resumed")),
    }
    report(app, cx, command.vm_id).await
}

fn not_active(what: &str) -> Error {
    Error::new(Code::InvalidState, format!("a VM that does not run cannot be {what}"))
}
