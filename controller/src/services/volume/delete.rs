//! Flow `volume.delete`: mark → remove.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shared::api::volume::{Volume, VolumeKind, VolumeState};
use shared::id::{HostId, ResourceId, VolumeId};
use shared::wire::host::StorageSpec;
use shared::wire::volume::DeleteVolume;
use shared::{Code, Error, Result};
use uuid::Uuid;

use crate::db::volume::Change;
use crate::db::{self, Tx};
use crate::specs;
use crate::workflow::{At, Flow, Step, StepCx};

/// Removes a data volume that is attached to nothing.
pub(super) struct Delete;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) id: VolumeId,
    /// Where it lies, once that is looked up; the row is gone when the removal is owed.
    #[serde(default)]
    pub(super) place: Option<(HostId, StorageSpec)>,
}

impl Flow for Delete {
    const KIND: &'static str = "volume.delete";
    const NOUN: &'static str = "volume";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Mark), Arc::new(Remove)]
    }
}

struct Mark;

#[async_trait]
impl Step<State> for Mark {
    fn name(&self) -> &'static str {
        "mark"
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let volume = db::volume::get(tx.conn(), state.id).await?.ok_or_else(|| Error::not_found("volume", state.id))?;
        if volume.kind == VolumeKind::Root {
            return Err(Error::new(Code::InUse, "a root volume is removed with its VM: expunge that").into());
        }
        if volume.vm_id.is_some() {
            return Err(Error::new(
                Code::InUse,
                format!("volume {} is attached to a VM: detach it first", volume.name),
            )
            .into());
        }
        if let Some(host) = volume.host_id {
            let storage = db::storage::get(tx.conn(), volume.storage_id).await?;
            let storage = storage.ok_or_else(|| Error::not_found("storage", volume.storage_id))?;
            state.place = Some((host, specs::storage(&storage)));
        }
        set(tx, &volume, VolumeState::Deleting).await
    }

    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        match db::volume::get(tx.conn(), state.id).await? {
            Some(volume) if volume.state == VolumeState::Deleting => set(tx, &volume, VolumeState::Available).await,
            _ => Ok(()),
        }
    }
}

async fn set(tx: &mut Tx, volume: &Volume, to: VolumeState) -> db::Result<()> {
    let to = Change { state: to, host_id: volume.host_id, vm_id: None, device: None };
    db::volume::change(tx, volume.id, &[VolumeState::Available, VolumeState::Deleting], &to).await
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
        let Some((host, storage)) = state.place.clone() else { return Ok(()) };
        cx.command(host, 0, &DeleteVolume { volume_id: state.id, storage }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let Some(volume) = db::volume::get(tx.conn(), state.id).await? else { return Ok(()) };
        if let Some(host) = volume.host_id {
            db::storage::release(tx, volume.storage_id, host, volume.size).await?;
        }
        db::volume::delete(tx, state.id).await
    }
}
