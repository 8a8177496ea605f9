//! `vm/delete`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use shared::id::VmId;
use shared::wire::Empty;
use shared::wire::vm::DeleteVm;
use shared::{Error, Result};

use crate::app::App;
use crate::cloud_init::vm_dir;
use crate::storage::FileError;
use crate::task::TaskCx;

/// Removes a VM's domain, its leases and its folder; its volumes stay.
///
/// # Errors
/// Those of the hypervisor.
pub async fn delete(app: &Arc<App>, cx: &TaskCx, command: DeleteVm) -> Result<Empty> {
    let vm_id = command.vm_id;
    // First of all: a call that hangs in the VM's QEMU would hold every other one up.
    cx.progress(10, "ending the VM");
    cx.until_cancelled(app.hypervisor.destroy(vm_id)).await?;
    app.expected.remove(vm_id);
    forget(app, cx, vm_id).await?;
    Ok(Empty {})
}

/// Removes what is left of a VM that does not run: its definition, its leases, its folder.
pub(super) async fn forget(app: &Arc<App>, cx: &TaskCx, vm_id: VmId) -> Result<()> {
    if cx.until_cancelled(app.hypervisor.get(vm_id)).await?.is_some() {
        super::present(app, cx, vm_id).await?;
        cx.progress(60, "removing the VM");
        cx.until_cancelled(app.hypervisor.undefine(vm_id)).await?;
    }
    cx.until_cancelled(app.networks.remove_vm(vm_id)).await?;
    remove_dir(&vm_dir(&app.config.agent.data_dir, vm_id))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::from(FileError::new("removing", dir, e))),
    }
}
