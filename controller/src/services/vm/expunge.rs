//! Flow `vm.expunge`: begin → remove. The root volume goes with the VM; data volumes are
//! detached and stay.
//!
//! What is on the disk of a host that cannot be reached is owed as clean-up, and removed when the host
//! is back.

use std::sync::Arc;

use async_trait::async_trait;
use shared::Result;
use shared::api::vm::VmState;
use shared::api::volume::VolumeKind;
use shared::id::ResourceId;
use shared::wire::vm::DeleteVm;
use shared::wire::volume::DeleteVolume;
use uuid::Uuid;

use super::spec;
use super::transition::{Begin, State};
use crate::db::{self, Tx};
use crate::workflow::{At, Flow, Step, StepCx};

/// Removes a deleted VM for good.
pub(super) struct Expunge;

impl Flow for Expunge {
    const KIND: &'static str = "vm.expunge";
    const NOUN: &'static str = "vm";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(LookUp), Arc::new(Remove)]
    }
}

const BEGIN: Begin = Begin { from: &[VmState::Deleted], via: VmState::Expunging, holds_compute: false };

/// Begins, and notes where the VM's remains are.
struct LookUp;

#[async_trait]
impl Step<State> for LookUp {
    fn name(&self) -> &'static str {
        BEGIN.name()
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        BEGIN.record(tx, at, state).await?;
        let Some(host) = db::vm::require(tx.conn(), state.id).await?.vm.host_id else { return Ok(()) };
        let volumes = db::volume::of_vm(tx.conn(), state.id).await?;
        let root = match volumes.into_iter().find(|volume| volume.kind == VolumeKind::Root) {
            Some(root) => Some((root.id, spec::storage_spec(tx.conn(), root.storage_id).await?)),
            None => None,
        };
        state.remains = Some((host, root));
        Ok(())
    }

    async fn unrecord(&self, tx: &mut Tx, at: &At, state: &State) -> db::Result<()> {
        BEGIN.unrecord(tx, at, state).await
    }
}

struct Remove;

#[async_trait]
impl Step<State> for Remove {
    fn name(&self) -> &'static str {
        "remove"
    }

    fn owed_when_failing(&self) -> bool {
        true
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let Some((host, root)) = state.remains.clone() else { return Ok(()) };
        cx.command(host, 0, &DeleteVm { vm_id: state.id }).await?;
        if let Some((volume_id, storage)) = root {
            cx.command(host, 1, &DeleteVolume { volume_id, storage }).await?;
        }
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        for volume in db::volume::of_vm(tx.conn(), state.id).await? {
            if volume.kind == VolumeKind::Root {
                db::volume::delete(tx, volume.id).await?;
                if let Some(host) = volume.host_id {
                    db::storage::release(tx, volume.storage_id, host, volume.size).await?;
                }
            } else {
                db::volume::release_from_vm(tx, volume.id).await?;
            }
        }
        db::nic::delete_of(tx, state.id).await?;
        db::vm::drop_compute(tx, state.id).await?;
        db::vm::delete(tx, state.id).await
    }
}
