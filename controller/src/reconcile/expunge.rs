//! Expunges VMs that were deleted long enough ago.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use shared::id::{ResourceId, VmId};
use shared::time::Timestamp;
use shared::{Code, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::vm::ExpungeVm;
use crate::services::Context;

/// VMs that are read at a time.
const BATCH: u32 = 500;
/// Requests that are on their way at a time: each waits for a commit, which they share.
const PARALLEL: usize = 32;
/// Most VMs that one run begins to expunge: their hosts have other things to do as well. As many as are made in
/// that time when nothing else is done.
const MOST: usize = 20_000;
/// How long the service may take to accept one.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(context: Context) -> Result<()> {
    let after_ms =
        i64::try_from(context.deps.settings.integer("vm.expunge_after").saturating_mul(1000)).unwrap_or(i64::MAX);
    let before = context.deps.clock.now().plus_ms(-after_ms);
    let (mut after, mut begun, mut failed) = ((Timestamp(0), None), 0, None);
    while begun < MOST {
        let due = {
            let mut conn = context.deps.db.read().await?;
            db::vm::deleted_before(&mut conn, before, after, BATCH).await?
        };
        let Some((at, id)) = due.last() else { break };
        after = (*at, Some(*id));
        let mine = due.into_iter().map(|(_, id)| id).filter(|id| context.deps.ring.is_mine(id.uuid()));
        let mut requests = stream::iter(mine).map(|id| expunge(&context, id)).buffer_unordered(PARALLEL);
        while let Some(request) = requests.next().await {
            match request {
                Ok(accepted) => begun += usize::from(accepted),
                // The others are not to wait for this one.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Whether it was accepted.
async fn expunge(context: &Context, id: VmId) -> Result<bool> {
    if context.deps.db.watched_vms.get(id).await?.is_none_or(|vm| vm.busy) {
        return Ok(false);
    }
    match context.bus()?.call(&Cx::system(PATIENCE), ExpungeVm { id }).await {
        // Somebody recovered or expunged it meanwhile.
        Err(error) if matches!(error.code, Code::InvalidState | Code::NotFound) => Ok(false),
        accepted => accepted.map(|_| true),
    }
}
