//! What hosts report of VMs, compared with what the database says.
//!
//! A VM that a job holds is left to the job. Otherwise the host is right about what the VM does, and
//! the database about whether it should exist: a deleted VM's domain is removed. Missing data never
//! means "off": only a complete listing can say that a domain is gone. An event that contradicts the
//! database has the host compared, and what a listing says counts only for a row that has not changed
//! since before the host was asked: old news never undoes what a job has done.

use std::time::Duration;

use shared::Result;
use shared::api::vm::VmState;
use shared::wire::vm::DeleteVm;

use crate::agent_client::{NoProgress, Order};
use crate::cx::Cx;
use crate::db;
use crate::db::vm::Watched;
use crate::messages::host::CompareHost;
use crate::messages::vm::{VmLost, VmObserved};
use crate::services::Context;

/// How long the comparison may take that an event asks for.
const COMPARE: Duration = Duration::from_secs(90);
/// States that a report may move a VM out of.
const RESTING: &[VmState] = &[VmState::Running, VmState::Stopped, VmState::Paused, VmState::Crashed, VmState::Unknown];

pub(super) async fn observed(context: Context, cx: Cx, message: VmObserved) -> Result<bool> {
    // A domain of a VM that nobody knows is the host service's business.
    let Some(Watched { row, busy }) = context.deps.db.watched_vms.get(message.id).await? else { return Ok(true) };
    if busy {
        return Ok(false);
    }
    if row.moving_to.is_some() {
        // On which of two hosts it is, is still to be found out.
        return Ok(false);
    }
    if row.vm.host_id != Some(message.host_id) {
        return Ok(true);
    }
    if row.vm.state == VmState::Deleted {
        if message.report.is_some() {
            remove(&context, &cx, &message).await?;
        }
        return Ok(true);
    }
    let seen = message.seen();
    if message.is_known(row.vm.state) || !RESTING.contains(&row.vm.state) {
        return Ok(true);
    }
    let Some(as_of) = message.as_of else {
        // An event may have been overtaken by a job that has ended since: the host is asked anew.
        context.bus()?.notify(&Cx::system(COMPARE), CompareHost { id: message.host_id });
        return Ok(true);
    };
    if as_of != row.version {
        return Ok(false);
    }
    tracing::info!(vm.id = %message.id, host.id = %message.host_id, from = %row.vm.state, to = %seen, "a vm changed by itself");
    let ran = row.vm.state == VmState::Running || row.vm.last_known_state == Some(VmState::Running);
    let starts_again = message.rebooted && seen == VmState::Stopped && ran && row.vm.auto_start;
    let generation = context.deps.ring.generation();
    let now = context.deps.clock.now();
    let written = context.deps.db.write(move |tx| {
        Box::pin(async move {
            // A job may have been accepted since the row was read.
            if db::vm::get(tx.conn(), message.id).await?.is_none_or(|row| row.version != as_of) {
                return Ok(false);
            }
            db::vm::change(tx, message.id, RESTING, seen, generation, now).await?;
            if starts_again {
                db::vm::set_start_due(tx, message.id).await?;
            }
            if seen.holds_compute() {
                db::vm::hold_compute_anyway(tx, message.id).await?;
            } else {
                db::vm::drop_compute(tx, message.id).await?;
            }
            Ok(true)
        })
    });
    Ok(written.await?)
}

/// The host does not answer: nobody knows what the VM does there.
pub(super) async fn lost(context: Context, message: VmLost) -> Result<()> {
    let generation = context.deps.ring.generation();
    let now = context.deps.clock.now();
    let written = context.deps.db.write(move |tx| {
        Box::pin(async move {
            let Some(row) = db::vm::get(tx.conn(), message.id).await? else { return Ok(()) };
            let runs = matches!(row.vm.state, VmState::Running | VmState::Paused | VmState::Crashed);
            if runs && row.vm.host_id == Some(message.host_id) {
                db::vm::change(tx, message.id, RESTING, VmState::Unknown, generation, now).await?;
            }
            Ok(())
        })
    });
    Ok(written.await?)
}

/// Removes the domain of a VM that was deleted while its host was away.
async fn remove(context: &Context, cx: &Cx, message: &VmObserved) -> Result<()> {
    let host = {
        let mut conn = context.deps.db.read().await?;
        db::host::get(&mut conn, message.host_id).await?
    };
    let Some(host) = host else { return Ok(()) };
    tracing::info!(vm.id = %message.id, host.id = %message.host_id, "removing the domain of a deleted vm");
    let order = Order::to(host.agent_id, context.deps.ring.generation(), cx.deadline);
    context.deps.agents.command(&host.reference(), order, &DeleteVm { vm_id: message.id }, &NoProgress).await?;
    Ok(())
}
