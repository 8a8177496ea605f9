//! Expunges VMs that were deleted long enough ago.

use std::time::Duration;

use shared::api::host::HostConnection;
use shared::id::ResourceId;
use shared::time::Timestamp;
use shared::{Code, Result};

use crate::cx::Cx;
use crate::db::{self, vm::VmRow};
use crate::messages::vm::ExpungeVm;
use crate::services::Context;

/// VMs that are read at a time.
const BATCH: u32 = 100;

pub(super) async fn run(context: Context) -> Result<()> {
    let after_ms =
        i64::try_from(context.deps.settings.integer("vm.expunge_after").saturating_mul(1000)).unwrap_or(i64::MAX);
    let before = context.deps.clock.now().plus_ms(-after_ms);
    // Those whose host is away stay, and must not be in the way of others.
    let mut after = (Timestamp(0), None);
    loop {
        let due = {
            let mut conn = context.deps.db.read().await?;
            db::vm::deleted_before(&mut conn, before, after, BATCH).await?
        };
        let Some(last) = due.last() else { return Ok(()) };
        after = (last.vm.deleted_at.unwrap_or(before), Some(last.vm.id));
        expunge(&context, due).await?;
    }
}

async fn expunge(context: &Context, due: Vec<VmRow>) -> Result<()> {
    let cx = Cx::system(Duration::from_secs(30));
    for row in due.into_iter().filter(|row| context.deps.ring.is_mine(row.vm.id.uuid())) {
        if !possible(context, &row).await? {
            continue;
        }
        match context.bus()?.call(&cx, ExpungeVm { id: row.vm.id }).await {
            // Somebody recovered or expunged it meanwhile.
            Err(error) if matches!(error.code, Code::InvalidState | Code::NotFound) => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Whether an attempt can succeed now: no job holds the VM, and its host answers.
async fn possible(context: &Context, row: &VmRow) -> Result<bool> {
    let mut conn = context.deps.db.read().await?;
    if db::job::has_open(&mut conn, row.vm.id.uuid()).await? {
        return Ok(false);
    }
    let Some(host) = row.vm.host_id else { return Ok(true) };
    let host = db::host::get(&mut conn, host).await?;
    Ok(host.is_some_and(|row| row.host.connection == HostConnection::Connected))
}
