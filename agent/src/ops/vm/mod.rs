//! Commands about VMs, one file per verb.
//!
//! Every verb looks at the domain first and does only what is missing; it records the generation of
//! its command in the domain's metadata before it acts, so that an older owner is refused afterwards.
//! Only what ends a VM by force acts before it looks: it must get through when the VM's QEMU hangs.

mod console_log;
mod delete;
mod ensure;
mod migrate;
mod power;
mod stop;
mod volume;

pub use console_log::read_console_log;
pub use delete::delete;
pub use ensure::ensure;
pub use migrate::{abandon, migrate, prepare, settle};
pub use power::{pause, resume};
pub use stop::{reboot, stop};
pub use volume::{attach_volume, detach_volume};

use std::sync::Arc;
use std::time::Duration;

use shared::id::VmId;
use shared::wire::vm::{PowerState, VmReport};
use shared::{Error, Result};

use crate::app::App;
use crate::cloud_init::vm_dir;
use crate::network::metadata::READY_FILE;
use crate::storage::FileError;
use crate::task::TaskCx;

/// A VM that must be on this host, after the command's generation has been recorded with it.
async fn present(app: &Arc<App>, cx: &TaskCx, vm_id: VmId) -> Result<VmReport> {
    let report = report(app, cx, vm_id).await?;
    if report.generation < cx.generation() {
        cx.until_cancelled(app.hypervisor.set_generation(vm_id, cx.generation())).await?;
    }
    Ok(VmReport { generation: report.generation.max(cx.generation()), ..report })
}

/// A VM as it is now.
async fn report(app: &Arc<App>, cx: &TaskCx, vm_id: VmId) -> Result<VmReport> {
    let report = cx.until_cancelled(app.hypervisor.get(vm_id)).await?;
    report.ok_or_else(|| Error::not_found("VM on this host", vm_id))
}

/// Starts a domain that does not run. What its guest said in an earlier run is forgotten.
async fn start(app: &Arc<App>, cx: &TaskCx, vm_id: VmId) -> Result<()> {
    let word = vm_dir(&app.config.agent.data_dir, vm_id).join(READY_FILE);
    match std::fs::remove_file(&word) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(FileError::new("removing", &word, e).into()),
        Ok(()) | Err(_) => {}
    }
    cx.until_cancelled(app.hypervisor.start(vm_id)).await
}

/// Waits until a VM is not active any more, as libvirt's events tell. Returns false when that takes
/// longer than `limit`.
async fn wait_inactive(app: &Arc<App>, cx: &TaskCx, vm_id: VmId, limit: Duration) -> Result<bool> {
    let mut changes = app.hypervisor.changes();
    let wait = async {
        loop {
            changes.borrow_and_update();
            match app.hypervisor.power(vm_id) {
                Some(PowerState::Stopped | PowerState::Crashed) => return Ok(()),
                Some(PowerState::Running | PowerState::Paused) => {}
                // Nobody knows while libvirt does not answer; gone when it does.
                None if app.hypervisor.summary().is_ok() => return Err(Error::not_found("VM on this host", vm_id)),
                None => {}
            }
            if changes.changed().await.is_err() {
                return Err(Error::internal("the hypervisor tells of no changes any more"));
            }
        }
    };
    match cx.until_cancelled(async { Ok::<_, Error>(tokio::time::timeout(limit, wait).await) }).await? {
        Ok(result) => result.map(|()| true),
        Err(_) => Ok(false),
    }
}
