//! Flow `vm.create`: accept → place → build.
//!
//! Accepting leases the addresses, placing reserves processors, memory and disk, building is one
//! command to the host, which does all that a VM needs there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shared::api::image::{DiskFormat, Image, ImageState};
use shared::api::vm::{CreateVm as Body, Vm, VmState};
use shared::api::volume::{Volume, VolumeKind, VolumeState};
use shared::id::{AccountId, ClusterId, HostId, ResourceId, StorageId, VmId, VolumeId};
use shared::units::Bytes;
use shared::wire::vm::{DeleteVm, EnsureVm};
use shared::wire::volume::DeleteVolume;
use shared::{Code, Error, Result};
use uuid::Uuid;

use super::spec;
use crate::db::{self, Tx, vm::VmRow};
use crate::placement::{self, Request};
use crate::workflow::{At, Flow, Step, StepCx};

/// How many of the best hosts are tried before looking again.
const SHORTLIST: usize = 8;

pub(super) struct Create;

/// The command, with what was resolved when it was accepted, and what the steps find.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) id: VmId,
    pub(super) account: AccountId,
    pub(super) body: Body,
    pub(super) vcpus: u32,
    pub(super) memory: Bytes,
    pub(super) disk: Bytes,
    pub(super) hostname: String,
    pub(super) image: Image,
    pub(super) cluster: Option<ClusterId>,
    pub(super) root_volume: VolumeId,
    pub(super) storage_overcommit: f64,
    /// Interfaces that the host must have.
    #[serde(default)]
    pub(super) uplinks: Vec<String>,
    /// Best hosts, from the last look.
    pub(super) shortlist: Vec<(HostId, StorageId)>,
    /// The host that was reserved.
    pub(super) place: Option<(HostId, StorageId)>,
}

impl State {
    pub(super) fn request(&self) -> Request {
        Request {
            vcpus: self.vcpus,
            memory: self.memory,
            disk: self.disk,
            cluster: self.cluster,
            host: self.body.host_id,
            uplinks: self.uplinks.clone(),
            storage: self.body.storage_id,
            on: Vec::new(),
            not_host: None,
            storage_overcommit: self.storage_overcommit,
        }
    }
}

impl Flow for Create {
    const KIND: &'static str = "vm.create";
    const NOUN: &'static str = "vm";
    // The first VM of an image waits for its download.
    const TIMEOUT: Duration = Duration::from_secs(6 * 3600);
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Accept), Arc::new(Place), Arc::new(Build)]
    }
}

/// Writes the VM and leases its addresses.
struct Accept;

#[async_trait]
impl Step<State> for Accept {
    fn name(&self) -> &'static str {
        "accept"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let image = db::image::get(tx.conn(), state.image.id).await?;
        if image.is_none_or(|image| image.state != ImageState::Ready) {
            return Err(Error::new(Code::InvalidState, format!("image {} is not ready", state.image.name)).into());
        }
        let vm = Vm {
            id: state.id,
            name: state.body.name.clone(),
            account_id: state.account,
            state: VmState::Creating,
            hostname: state.hostname.clone(),
            vcpus: state.vcpus,
            memory: state.memory,
            instance_type_id: state.body.instance_type_id,
            image_id: state.image.id,
            root_volume_id: state.root_volume,
            firmware: state.image.firmware,
            host_id: None,
            auto_start: state.body.auto_start,
            nics: Vec::new(),
            state_since: at.now,
            last_known_state: None,
            deleted_at: None,
            created_at: at.now,
            links: Default::default(),
        };
        let row = VmRow {
            vm,
            holds_compute: false,
            ssh_keys: state.body.ssh_keys.clone(),
            user_data: state.body.user_data.clone(),
            moving_to: None,
            version: 0,
        };
        db::vm::insert(tx, &row, at.generation).await?;
        for (position, nic) in state.body.nics.iter().enumerate() {
            db::nic::add(tx, state.id, position, (nic.network_id, nic.ip), random_mac).await?;
        }
        Ok(())
    }

    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        db::nic::delete_of(tx, state.id).await?;
        db::vm::delete(tx, state.id).await
    }
}

/// Chooses a host and reserves what the VM needs there.
struct Place;

#[async_trait]
impl Step<State> for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        state.shortlist = cx.deps.placement.shortlist(&state.request(), SHORTLIST).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let shortlist = std::mem::take(&mut state.shortlist);
        for place in shortlist.iter().copied() {
            if reserve(tx, at, state, place).await? {
                return Ok(());
            }
        }
        // Others were faster on every host of the list. Nobody is faster than this transaction.
        for place in db::placement::fitting(tx.conn(), &state.request(), SHORTLIST as u32).await? {
            if reserve(tx, at, state, place).await? {
                return Ok(());
            }
        }
        let hosts: Vec<HostId> = shortlist.into_iter().map(|(host, _)| host).collect();
        Err(placement::given_away(&db::placement::of_hosts(tx.conn(), &hosts).await?, &state.request()).into())
    }

    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        let Some(volume) = db::volume::get(tx.conn(), state.root_volume).await? else { return Ok(()) };
        db::volume::delete(tx, volume.id).await?;
        if let Some(host) = volume.host_id {
            db::storage::release(tx, volume.storage_id, host, volume.size).await?;
        }
        db::vm::drop_compute(tx, state.id).await?;
        db::vm::set_host(tx, state.id, None).await
    }
}

/// Reserves one place; false when it is taken meanwhile.
async fn reserve(tx: &mut Tx, at: &At, state: &mut State, (host, storage): (HostId, StorageId)) -> db::Result<bool> {
    if !db::storage::reserve(tx, storage, host, state.disk, state.storage_overcommit).await? {
        return Ok(false);
    }
    if !db::host::reserve(tx, host, state.vcpus, state.memory, true).await? {
        db::storage::release(tx, storage, host, state.disk).await?;
        return Ok(false);
    }
    db::vm::place(tx, state.id, host).await?;
    let root = Volume {
        id: state.root_volume,
        // The VM's name may change; the id keeps the volume's unique.
        name: root_volume_name(state.root_volume),
        account_id: state.account,
        kind: VolumeKind::Root,
        state: VolumeState::Creating,
        size: state.disk,
        format: DiskFormat::Qcow2,
        storage_id: storage,
        host_id: Some(host),
        vm_id: Some(state.id),
        device: Some("vda".to_string()),
        image_id: Some(state.image.id),
        created_at: at.now,
        links: Default::default(),
    };
    db::volume::insert(tx, &root).await?;
    state.place = Some((host, storage));
    Ok(true)
}

/// Has the host make it all: networks, image, volume, domain.
struct Build;

#[async_trait]
impl Step<State> for Build {
    fn name(&self) -> &'static str {
        "build"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let (host, vm) = spec::build(&cx.deps, state.id).await?;
        cx.command(host, 0, &EnsureVm { vm, start: state.body.start }).await?;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let root = db::volume::Change {
            state: VolumeState::Attached,
            host_id: state.place.map(|(host, _)| host),
            vm_id: Some(state.id),
            device: Some("vda"),
        };
        db::volume::change(tx, state.root_volume, &[VolumeState::Creating, VolumeState::Attached], &root).await?;
        if let Some((host, _)) = state.place {
            db::image::add_host(tx, state.image.id, host).await?;
        }
        let to = if state.body.start { VmState::Running } else { VmState::Stopped };
        db::vm::change(tx, state.id, &[VmState::Creating, VmState::Unknown], to, at.generation, at.now).await?;
        if !state.body.start {
            db::vm::drop_compute(tx, state.id).await?;
        }
        Ok(())
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let Some((host, storage)) = state.place else { return Ok(()) };
        let storage = db::soon(async {
            let mut conn = cx.deps.db.read().await?;
            spec::storage_spec(&mut conn, storage).await
        })
        .await?;
        cx.command(host, 0, &DeleteVm { vm_id: state.id }).await?;
        cx.command(host, 1, &DeleteVolume { volume_id: state.root_volume, storage }).await?;
        Ok(())
    }
}

/// Name of a root volume.
fn root_volume_name(id: VolumeId) -> shared::name::Name {
    // A UUID has only characters that a name may have.
    format!("root-{id}").parse().unwrap_or_else(|_| unreachable!("a UUID is a name"))
}

/// A hardware address that nobody has given out: locally administered, for one receiver. There are 2^40 of
/// them, so that one of a million VMs finds another's once in a million times.
fn random_mac() -> String {
    let [a, b, c, d, e]: [u8; 5] = rand::random();
    format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}
