//! Where a VM is that was being moved: asked of both hosts, and written down. Nothing is taken back on what was
//! told alone; see [`super`].

use shared::id::HostId;
use shared::wire::vm::{AbandonMigration, DeleteVm, PowerState, Settle, SettleMigration, Whereabouts};
use shared::wire::volume::DeleteVolume;
use shared::{Code, Error, Result};

use super::State;
use crate::db::{self, Tx};
use crate::workflow::StepCx;

/// Numbers of the commands by which it is found out where a VM is.
const SETTLING: u32 = 10;
/// Numbers of the commands that remove what is left on the source.
const CLEANING: u32 = 20;

/// Where a VM is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Where it was, running or not.
    Stayed,
    /// On the target.
    Moved,
}

/// Looks at both hosts; changes nothing.
pub(super) async fn look(cx: &StepCx, state: &State) -> Result<Found> {
    let (source, target) = state.way()?;
    let ask = |n, act| Ask { n, act };
    if where_is(cx, state, source, ask(0, Settle::Look)).await?.is_here() {
        return Ok(Found::Stayed);
    }
    let there = where_is(cx, state, target, ask(1, Settle::Look)).await?;
    Ok(if there.is_here() { Found::Moved } else { Found::Stayed })
}

/// One question while it is found out where a VM is.
struct Ask {
    n: u32,
    act: Settle,
}

async fn where_is(cx: &StepCx, state: &State, host: HostId, ask: Ask) -> Result<Whereabouts> {
    let answer = cx.command(host, SETTLING + ask.n, &SettleMigration { vm_id: state.id, act: ask.act }).await;
    match answer {
        // A host that was removed from the cloud has nothing.
        Err(error) if error.code == Code::NotFound => Ok(Whereabouts { power: None, moving: false }),
        answer => answer,
    }
}

/// Ends the migration if it goes on, finds out where the VM is, and writes that down. An error says that it
/// cannot be found out now. It writes, although it is part of an undoing: only once the hosts have said where
/// the VM is can it be known what has to be taken back.
pub(super) async fn settle(cx: &StepCx, state: &State) -> Result<()> {
    let (source, target) = state.way()?;
    let ask = |n, act| Ask { n, act };
    let here = where_is(cx, state, source, ask(0, Settle::Abort)).await?;
    let mut found = Found::Stayed;
    if !here.is_here() {
        let there = where_is(cx, state, target, ask(1, Settle::Look)).await?;
        if there.is_here() {
            found = Found::Moved;
        } else if matches!(there.power, Some(PowerState::Running | PowerState::Paused)) {
            let text = "the VM still comes in on the target: it is looked at again";
            return Err(Error::new(Code::Unavailable, text));
        } else if here.moving {
            // It was sent, and did not arrive.
            where_is(cx, state, source, ask(2, Settle::GoOn)).await?;
        }
    }
    tracing::info!(vm.id = %state.id, source.id = %source, target.id = %target, ?found, "a migration that did not end well is settled");
    let (state, moved) = (state.clone(), state.clone());
    let written = cx.deps.db.write(move |tx| {
        Box::pin(async move {
            match found {
                Found::Stayed => stays(tx, &state).await,
                Found::Moved => arrives(tx, &state).await,
            }
        })
    });
    written.await?;
    if found == Found::Moved {
        clean(cx, &moved).await?;
    }
    Ok(())
}

/// The VM is on the target: it is its host from now on, and what was the source's is given back.
pub(super) async fn arrives(tx: &mut Tx, state: &State) -> db::Result<()> {
    let (source, target) = state.way()?;
    let Some(row) = db::vm::get(tx.conn(), state.id).await? else { return Ok(()) };
    if row.moving_to != Some(target) {
        return Ok(());
    }
    db::host::release(tx, source, i64::from(state.vcpus), state.memory.as_i64()).await?;
    for volume in &state.volumes {
        if volume.is_local() {
            db::storage::release(tx, volume.storage.storage_id, source, volume.size).await?;
        }
        db::volume::set_host(tx, volume.id, target).await?;
    }
    db::image::add_host(tx, row.vm.image_id, target).await?;
    db::vm::set_host(tx, state.id, Some(target)).await?;
    db::vm::set_moving_to(tx, state.id, None).await
}

/// The VM is where it was: what was reserved on the target is given back.
pub(super) async fn stays(tx: &mut Tx, state: &State) -> db::Result<()> {
    let Some(target) = state.target else { return Ok(()) };
    let Some(row) = db::vm::get(tx.conn(), state.id).await? else { return Ok(()) };
    if row.moving_to != Some(target) {
        return Ok(());
    }
    db::host::release(tx, target, i64::from(state.vcpus), state.memory.as_i64()).await?;
    for volume in state.local() {
        db::storage::release(tx, volume.storage.storage_id, target, volume.size).await?;
    }
    db::vm::set_moving_to(tx, state.id, None).await
}

pub(super) async fn clean(cx: &StepCx, state: &State) -> Result<()> {
    let (source, _) = state.way()?;
    let row = db::soon(async {
        let mut conn = cx.deps.db.read().await?;
        db::vm::get(&mut conn, state.id).await
    });
    if let Some(row) = row.await?
        && (row.vm.host_id == Some(source) || row.moving_to == Some(source))
    {
        // It has come back meanwhile, or is about to: what is there is in use.
        return Ok(());
    }
    let left = where_is(cx, state, source, Ask { n: 3, act: Settle::Look }).await?;
    match left.power {
        Some(PowerState::Running | PowerState::Paused) if left.moving => {
            // It was sent, and libvirt there was not told that it has arrived.
            cx.command(source, CLEANING, &DeleteVm { vm_id: state.id }).await?;
        }
        Some(PowerState::Running | PowerState::Paused) => {
            let text =
                format!("vm {} is active on host {source}, which it has left: it is not touched there", state.id);
            return Err(Error::new(Code::Conflict, text));
        }
        Some(PowerState::Stopped | PowerState::Crashed) | None => {
            cx.command(source, CLEANING, &AbandonMigration { vm_id: state.id }).await?;
        }
    }
    for (n, volume) in (CLEANING + 1..).zip(state.local()) {
        cx.command(source, n, &DeleteVolume { volume_id: volume.id, storage: volume.storage.clone() }).await?;
    }
    Ok(())
}
