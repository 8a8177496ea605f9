//! `vm/attach_volume` and `vm/detach_volume`.

use std::sync::Arc;
use std::time::Duration;

use shared::wire::Empty;
use shared::wire::vm::{AttachVolume, DetachVolume};
use shared::{Error, Result};

use super::ensure::takes_direct_io;
use super::present;
use crate::app::App;
use crate::libvirt::xml::device::Disk;
use crate::storage::local;
use crate::task::TaskCx;

/// How long a guest is given before it is asked once more to let go: one that is still booting, or
/// that has the disk mounted, takes no notice.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Attaches a disk, hot when the VM runs; makes the volume when it is missing.
///
/// # Errors
/// `invalid_state` when the device is taken, or the volume is attached as another; `not_found`.
pub async fn attach_volume(app: &Arc<App>, cx: &TaskCx, command: AttachVolume) -> Result<Empty> {
    present(app, cx, command.vm_id).await?;
    cx.progress(10, "preparing the volume");
    let path = local::ensure(app, cx, &command.disk.volume).await?;
    let direct = takes_direct_io(&path);
    let disk = Disk {
        volume_id: command.disk.volume.volume_id,
        path,
        format: command.disk.volume.format,
        device: command.disk.device,
        direct,
    };
    cx.progress(80, "plugging the disk in");
    cx.until_cancelled(app.hypervisor.attach_disk(command.vm_id, &disk)).await?;
    Ok(Empty {})
}

/// Detaches a disk, hot when the VM runs, and waits until the guest has let go.
///
/// # Errors
/// `deadline_exceeded` when the guest does not let go; the disk is then still attached. `not_found`
/// when the VM is not on this host.
pub async fn detach_volume(app: &Arc<App>, cx: &TaskCx, command: DetachVolume) -> Result<Empty> {
    let DetachVolume { vm_id, volume_id } = command;
    present(app, cx, vm_id).await?;
    let mut changes = app.hypervisor.changes();
    loop {
        changes.borrow_and_update();
        if cx.until_cancelled(app.hypervisor.detach_disk(vm_id, volume_id)).await? {
            return Ok(Empty {});
        }
        cx.progress(50, "waiting for the guest to let go of the disk");
        let change = tokio::time::timeout(ASK_AGAIN, changes.changed());
        cx.until_cancelled(async { Ok::<_, Error>(change.await.is_ok()) }).await?;
    }
}
