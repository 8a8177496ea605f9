//! Flow `vm.attach_volume`: begin → attach. Hot when the VM runs.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shared::api::storage::StorageKind;
use shared::api::vm::VmState;
use shared::api::volume::{Volume, VolumeKind, VolumeState};
use shared::id::{HostId, ResourceId, VmId, VolumeId};
use shared::wire::vm::{AttachVolume, DetachVolume, DiskSpec};
use shared::wire::volume::DeleteVolume;
use shared::{Code, Error, Result};
use uuid::Uuid;

use super::spec;
use super::transition::host_of;
use crate::db::volume::Change;
use crate::db::{self, Tx};
use crate::workflow::{At, Flow, Step, StepCx};

/// Attaches a data volume to a VM.
pub(super) struct Attach;

/// State of attaching and detaching.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) vm: VmId,
    pub(super) volume: VolumeId,
    pub(super) storage_overcommit: f64,
    /// Device name in the guest, once chosen.
    #[serde(default)]
    pub(super) device: Option<String>,
    /// The host that this job has put the volume on, when it was nowhere before.
    #[serde(default)]
    pub(super) placed_on: Option<HostId>,
    /// The host that it was reached by before; another one than the VM's for a volume on a shared storage.
    #[serde(default)]
    pub(super) came_from: Option<HostId>,
}

impl Flow for Attach {
    const KIND: &'static str = "vm.attach_volume";
    const NOUN: &'static str = "vm";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.vm.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Begin), Arc::new(OnHost)]
    }
}

/// States in which disks may come and go.
pub(super) fn check_vm(vm: &db::vm::VmRow) -> Result<()> {
    match vm.vm.state {
        VmState::Running | VmState::Stopped | VmState::Paused | VmState::Crashed => Ok(()),
        state => {
            Err(Error::new(Code::InvalidState, format!("vm {} is {state}: its disks cannot change now", vm.vm.name)))
        }
    }
}

struct Begin;

#[async_trait]
impl Step<State> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let vm = db::vm::require(tx.conn(), state.vm).await?;
        check_vm(&vm)?;
        let volume = db::volume::get(tx.conn(), state.volume).await?;
        let volume = volume.ok_or_else(|| Error::not_found("volume", state.volume))?;
        if volume.kind == VolumeKind::Root {
            return Err(
                Error::new(Code::InvalidState, format!("volume {} is the root volume of a VM", volume.name)).into()
            );
        }
        let Some(host) = vm.vm.host_id else {
            return Err(Error::new(Code::InvalidState, format!("vm {} is on no host", vm.vm.name)).into());
        };
        match volume.host_id {
            Some(other) if other != host && !is_shared(tx, &volume).await? => {
                let text = format!("volume {} lies on another host's disk than vm {}", volume.name, vm.vm.name);
                return Err(Error::new(Code::InvalidState, text).into());
            }
            Some(other) => state.came_from = Some(other),
            None => {
                if !db::storage::reserve(tx, volume.storage_id, host, volume.size, state.storage_overcommit).await? {
                    let text = format!("the storage has no {} left on the host of vm {}", volume.size, vm.vm.name);
                    return Err(Error::new(Code::NoSpace, text).into());
                }
                state.placed_on = Some(host);
            }
        }
        let used: Vec<_> = db::volume::of_vm(tx.conn(), state.vm).await?.into_iter().filter_map(|v| v.device).collect();
        let device = ('b'..='z').map(|letter| format!("vd{letter}")).find(|device| !used.contains(device));
        let device =
            device.ok_or_else(|| Error::new(Code::Exhausted, "the VM has 26 disks: no more can be attached"))?;
        let to =
            Change { state: VolumeState::Attaching, host_id: Some(host), vm_id: Some(state.vm), device: Some(&device) };
        db::volume::change(tx, state.volume, &[VolumeState::Available], &to).await?;
        state.device = Some(device);
        Ok(())
    }

    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        let Some(volume) = db::volume::get(tx.conn(), state.volume).await? else { return Ok(()) };
        if volume.state != VolumeState::Attaching || volume.vm_id != Some(state.vm) {
            return Ok(());
        }
        let host_id = if state.placed_on.is_some() { None } else { state.came_from.or(volume.host_id) };
        let to = Change { state: VolumeState::Available, host_id, vm_id: None, device: None };
        db::volume::change(tx, state.volume, &[VolumeState::Attaching], &to).await?;
        if let Some(host) = state.placed_on {
            db::storage::release(tx, volume.storage_id, host, volume.size).await?;
        }
        Ok(())
    }
}

/// Whether every host that has the volume's storage reaches the volume.
async fn is_shared(tx: &mut Tx, volume: &Volume) -> db::Result<bool> {
    let storage = db::storage::without_hosts(tx.conn(), volume.storage_id).await?;
    Ok(storage.is_some_and(|storage| storage.kind == StorageKind::Shared))
}

struct OnHost;

#[async_trait]
impl Step<State> for OnHost {
    fn name(&self) -> &'static str {
        "attach"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let host = host_of(cx, state.vm).await?;
        let disk = disk(cx, state).await?;
        cx.command(host, 0, &AttachVolume { vm_id: state.vm, disk }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let volume = db::volume::get(tx.conn(), state.volume).await?;
        let volume = volume.ok_or_else(|| Error::not_found("volume", state.volume))?;
        let to = Change {
            state: VolumeState::Attached,
            host_id: volume.host_id,
            vm_id: Some(state.vm),
            device: state.device.as_deref(),
        };
        db::volume::change(tx, state.volume, &[VolumeState::Attaching, VolumeState::Attached], &to).await
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let host = host_of(cx, state.vm).await?;
        cx.command(host, 0, &DetachVolume { vm_id: state.vm, volume_id: state.volume }).await?;
        if state.placed_on.is_some() {
            let storage = disk(cx, state).await?.volume.storage;
            cx.command(host, 1, &DeleteVolume { volume_id: state.volume, storage }).await?;
        }
        Ok(())
    }
}

/// The volume as a disk of the VM.
pub(super) async fn disk(cx: &StepCx, state: &State) -> Result<DiskSpec> {
    db::soon(async {
        let mut conn = cx.deps.db.read().await?;
        let volume = db::volume::get(&mut conn, state.volume).await?;
        let volume = volume.ok_or_else(|| Error::not_found("volume", state.volume))?;
        let device = state.device.clone().or_else(|| volume.device.clone());
        let device = device.ok_or_else(|| Error::internal("a volume is attached without a device name"))?;
        Ok(DiskSpec { volume: spec::volume_spec(&cx.deps, &volume).await?, device })
    })
    .await
}
