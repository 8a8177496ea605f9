//! Expunges VMs that were deleted long enough ago.

use std::time::Duration;

use shared::id::ResourceId;
use shared::{Code, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::vm::ExpungeVm;
use crate::services::Context;

/// Most VMs that one run expunges.
const BATCH: u32 = 100;

pub(super) async fn run(context: Context) -> Result<()> {
    let after_ms = i64::try_from(context.deps.settings.integer("vm.expunge_after").saturating_mul(1000)).unwrap_or(i64::MAX);
    let before = context.deps.clock.now().plus_ms(-after_ms);
    let due = {
        let mut conn = context.deps.db.read().await?;
        db::vm::deleted_before(&mut conn, before, BATCH).await?
    };
    let cx = Cx::system(Duration::from_secs(30));
    for row in due.into_iter().filter(|row| context.deps.ring.is_mine(row.vm.id.uuid())) {
        let busy = {
            let mut conn = context.deps.db.read().await?;
            db::job::has_open(&mut conn, row.vm.id.uuid()).await?
        };
        if busy {
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
