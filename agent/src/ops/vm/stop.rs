//! `vm/stop` and `vm/reboot`.

use std::sync::Arc;
use std::time::Duration;

use shared::api::vm::StopMode;
use shared::id::VmId;
use shared::wire::vm::{PowerState, RebootVm, StopVm, VmReport};
use shared::{Code, Error, Result};
use tokio::time::Instant;

use super::{present, report, wait_inactive};
use crate::app::App;
use crate::libvirt::ShutdownBy;
use crate::task::TaskCx;

/// How long a guest is given before the power button is pressed once more: one that is still booting
/// takes no notice of it.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Stops a VM.
///
/// # Errors
/// `invalid_state` when the guest does not stop in time and may not be forced; `not_found`.
pub async fn stop(app: &Arc<App>, cx: &TaskCx, command: StopVm) -> Result<VmReport> {
    force(app, cx, command.vm_id, command.mode).await?;
    let now = present(app, cx, command.vm_id).await?;
    stop_from(app, cx, command.vm_id, now.power, command.mode, command.timeout_s).await?;
    report(app, cx, command.vm_id).await
}

/// Stops a VM and starts the same domain again.
///
/// # Errors
/// As for [`stop`].
pub async fn reboot(app: &Arc<App>, cx: &TaskCx, command: RebootVm) -> Result<VmReport> {
    force(app, cx, command.vm_id, command.mode).await?;
    let now = present(app, cx, command.vm_id).await?;
    stop_from(app, cx, command.vm_id, now.power, command.mode, command.timeout_s).await?;
    cx.check()?;
    cx.progress(80, "starting the VM");
    super::start(app, cx, command.vm_id).await?;
    report(app, cx, command.vm_id).await
}

/// Ends a VM at once when that is asked for, before anything else: a call that hangs in its QEMU would
/// hold every other one up, the recording of the generation too.
async fn force(app: &Arc<App>, cx: &TaskCx, vm_id: VmId, mode: StopMode) -> Result<()> {
    if mode == StopMode::Force {
        cx.progress(50, "ending the VM");
        cx.until_cancelled(app.hypervisor.destroy(vm_id)).await?;
    }
    Ok(())
}

async fn stop_from(
    app: &Arc<App>,
    cx: &TaskCx,
    vm_id: VmId,
    power: PowerState,
    mode: StopMode,
    timeout_s: u32,
) -> Result<()> {
    match (power, mode) {
        (PowerState::Stopped | PowerState::Crashed, _) => return Ok(()),
        // It came up again by itself.
        (PowerState::Running | PowerState::Paused, StopMode::Force) => return force(app, cx, vm_id, mode).await,
        // A halted guest cannot hear that it shall stop.
        (PowerState::Paused, StopMode::Graceful | StopMode::GracefulOnly) => {
            cx.until_cancelled(app.hypervisor.resume(vm_id)).await?;
        }
        (PowerState::Running, StopMode::Graceful | StopMode::GracefulOnly) => {}
    }
    cx.progress(10, "waiting for the guest to shut down");
    if ask(app, cx, vm_id, Duration::from_secs(timeout_s.into())).await? {
        return Ok(());
    }
    if mode == StopMode::GracefulOnly {
        let message = format!("the guest did not shut down within {timeout_s} s and runs on; it can be forced");
        return Err(Error::new(Code::InvalidState, message));
    }
    tracing::info!(vm.id = %vm_id, timeout_s, "the guest did not shut down in time and is ended");
    cx.progress(70, "ending the VM");
    cx.until_cancelled(app.hypervisor.destroy(vm_id)).await?;
    Ok(())
}

/// Asks the guest to shut down, again and again, until it has or `limit` has passed.
async fn ask(app: &Arc<App>, cx: &TaskCx, vm_id: VmId, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    let mut by = ShutdownBy::Any;
    loop {
        cx.until_cancelled(app.hypervisor.shutdown(vm_id, by)).await?;
        by = ShutdownBy::Acpi;
        let left = end.saturating_duration_since(Instant::now());
        if wait_inactive(app, cx, vm_id, left.min(ASK_AGAIN)).await? {
            return Ok(true);
        }
        if end <= Instant::now() {
            return Ok(false);
        }
    }
}
