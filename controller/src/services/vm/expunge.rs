//! Flow `vm.expunge`: begin → remove → forget. The root volume goes with the VM; data volumes are
//! detached and stay.
//!
//! It needs the host: what is on a disk that cannot be reached cannot be removed. While the host is
//! away the job fails and the VM stays deleted; the expunger tries again.

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
use super::transition::{Begin, State, host_of};
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
        let begin = Begin { from: &[VmState::Deleted], via: VmState::Expunging, holds_compute: false };
        vec![Arc::new(begin), Arc::new(Remove), Arc::new(Forget)]
    }
}

struct Remove;

#[async_trait]
impl Step<State> for Remove {
    fn name(&self) -> &'static str {
        "remove"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.id).await?;
        let root = {
            let mut conn = cx.deps.db.read().await?;
            let volumes = db::volume::of_vm(&mut conn, state.id).await?;
            match volumes.into_iter().find(|volume| volume.kind == VolumeKind::Root) {
                Some(root) => Some((root.id, spec::storage_spec(&mut conn, root.storage_id).await?)),
                None => None,
            }
        };
        cx.command(host, 0, &DeleteVm { vm_id: state.id }).await?;
        if let Some((volume_id, storage)) = root {
            cx.command(host, 1, &DeleteVolume { volume_id, storage }).await?;
        }
        Ok(())
    }
}

struct Forget;

#[async_trait]
impl Step<State> for Forget {
    fn name(&self) -> &'static str {
        "forget"
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
