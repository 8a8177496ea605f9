//! Flow `vm.detach_volume`: begin → detach. Hot when the VM runs; it waits until the guest has let go.

use std::sync::Arc;

use async_trait::async_trait;
use shared::api::volume::{VolumeKind, VolumeState};
use shared::id::ResourceId;
use shared::wire::vm::{AttachVolume, DetachVolume};
use shared::{Code, Error, Result};
use uuid::Uuid;

use super::attach_volume::{State, check_vm, disk};
use super::transition::host_of;
use crate::db::volume::Change;
use crate::db::{self, Tx};
use crate::workflow::{At, Flow, Step, StepCx};

/// Detaches a data volume from its VM.
pub(super) struct Detach;

impl Flow for Detach {
    const KIND: &'static str = "vm.detach_volume";
    const NOUN: &'static str = "vm";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.vm.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Begin), Arc::new(OnHost)]
    }
}

struct Begin;

#[async_trait]
impl Step<State> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        check_vm(&db::vm::require(tx.conn(), state.vm).await?)?;
        let volume = db::volume::get(tx.conn(), state.volume).await?;
        let volume = volume.ok_or_else(|| Error::not_found("volume", state.volume))?;
        if volume.kind == VolumeKind::Root {
            return Err(Error::new(Code::InvalidState, "the root volume stays with its VM").into());
        }
        if volume.vm_id != Some(state.vm) {
            return Err(
                Error::new(Code::InvalidState, format!("volume {} is attached to another VM", volume.name)).into()
            );
        }
        state.device.clone_from(&volume.device);
        set(tx, state, &[VolumeState::Attached], VolumeState::Detaching).await
    }

    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        let now = db::volume::get(tx.conn(), state.volume).await?;
        if now.is_some_and(|volume| volume.state == VolumeState::Detaching) {
            set(tx, state, &[VolumeState::Detaching], VolumeState::Attached).await?;
        }
        Ok(())
    }
}

async fn set(tx: &mut Tx, state: &State, from: &[VolumeState], to: VolumeState) -> db::Result<()> {
    let Some(volume) = db::volume::get(tx.conn(), state.volume).await? else {
        return Err(Error::not_found("volume", state.volume).into());
    };
    let attached = to != VolumeState::Available;
    let to = Change {
        state: to,
        host_id: volume.host_id,
        vm_id: attached.then_some(state.vm),
        device: if attached { state.device.as_deref() } else { None },
    };
    db::volume::change(tx, state.volume, from, &to).await
}

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "detach"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.vm).await?;
        cx.command(host, 0, &DetachVolume { vm_id: state.vm, volume_id: state.volume }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        set(tx, state, &[VolumeState::Detaching, VolumeState::Available], VolumeState::Available).await
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let host = host_of(cx, state.vm).await?;
        let disk = disk(cx, state).await?;
        cx.command(host, 0, &AttachVolume { vm_id: state.vm, disk }).await?;
        Ok(())
    }
}
