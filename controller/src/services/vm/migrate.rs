//! Flow `vm.migrate`: begin → place → prepare → migrate → clean.
//!
//! ```text
//! begin    running | paused ──▶ migrating
//! place    reserves processors, memory and local disk on the target; the row says where it is moving to
//! prepare  target: networks, leases, seed, volumes
//! migrate  source: libvirt moves it; recorded: it is on the target, and the source's share is given back
//! clean    source: leases, seed, volumes on its own disk (owed when the source does not answer)
//! ```
//!
//! What has happened when `migrate` fails, or was cut off, is asked of both hosts ([`settle`]): a VM that runs
//! on the source stays there, one that is on the target has moved, whatever was told. As long as that cannot
//! be found out, because a host does not answer, the row keeps where the VM may be moving to, its state is
//! `unknown`, and no other verb may touch it; the undoing is owed, and settles it when the host is back.

mod settle;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shared::api::host::HostFacts;
use shared::api::storage::StorageKind;
use shared::api::vm::VmState;
use shared::api::volume::VolumeState;
use shared::id::{ClusterId, HostId, ResourceId, StorageId, VmId, VolumeId};
use shared::units::Bytes;
use shared::wire::host::{StorageSpec, VirtMode, release_numbers};
use shared::wire::vm::{AbandonMigration, Landing, MigrateVm, PrepareMigration};
use shared::wire::volume::DeleteVolume;
use shared::{Code, Error, Result};
use uuid::Uuid;

use self::settle::{Found, arrives, clean, look, settle, stays};
use super::spec;
use crate::db::{self, Tx};
use crate::placement::{self, Request};
use crate::workflow::{At, Flow, Step, StepCx};

/// How many of the best hosts are looked at.
const SHORTLIST: usize = 32;

pub(super) struct Migrate;

/// The command, and what the steps find.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) id: VmId,
    /// The host that was asked for.
    pub(super) wanted: Option<HostId>,
    pub(super) storage_overcommit: f64,
    /// What it was when the job was accepted.
    pub(super) was: Option<VmState>,
    /// The host that it leaves.
    pub(super) source: Option<HostId>,
    pub(super) cluster: Option<ClusterId>,
    pub(super) uplinks: Vec<String>,
    pub(super) vcpus: u32,
    pub(super) memory: Bytes,
    /// Its volumes, with what they take of a host's own disk.
    pub(super) volumes: Vec<Moved>,
    /// Best hosts, from the last look.
    pub(super) shortlist: Vec<HostId>,
    /// The host that was reserved.
    pub(super) target: Option<HostId>,
    /// Whether the target was made ready: from then on only the hosts know where the VM is.
    pub(super) prepared: bool,
}

/// A volume that goes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moved {
    pub(super) id: VolumeId,
    pub(super) storage: StorageSpec,
    pub(super) size: Bytes,
}

impl Moved {
    /// Whether it lies on the host's own disk, and has to be copied.
    fn is_local(&self) -> bool {
        self.storage.kind == StorageKind::Local
    }
}

impl State {
    pub(super) fn new(id: VmId, wanted: Option<HostId>, storage_overcommit: f64) -> Self {
        Self {
            id,
            wanted,
            storage_overcommit,
            was: None,
            source: None,
            cluster: None,
            uplinks: Vec::new(),
            vcpus: 0,
            memory: Bytes(0),
            volumes: Vec::new(),
            shortlist: Vec::new(),
            target: None,
            prepared: false,
        }
    }

    fn local(&self) -> impl Iterator<Item = &Moved> {
        self.volumes.iter().filter(|volume| volume.is_local())
    }

    fn request(&self) -> Request {
        let mut on: Vec<(StorageId, Bytes)> = Vec::new();
        for volume in &self.volumes {
            let needed = if volume.is_local() { volume.size } else { Bytes(0) };
            match on.iter_mut().find(|(id, _)| *id == volume.storage.storage_id) {
                Some((_, sum)) => *sum = *sum + needed,
                None => on.push((volume.storage.storage_id, needed)),
            }
        }
        Request {
            vcpus: self.vcpus,
            memory: self.memory,
            disk: Bytes(0),
            storage: None,
            on,
            cluster: self.cluster,
            host: self.wanted,
            not_host: self.source,
            uplinks: self.uplinks.clone(),
            storage_overcommit: self.storage_overcommit,
        }
    }

    /// Source and target, once both are known.
    fn way(&self) -> Result<(HostId, HostId)> {
        self.source.zip(self.target).ok_or_else(|| Error::internal("a migration has no source or no target"))
    }
}

impl Flow for Migrate {
    const KIND: &'static str = "vm.migrate";
    const NOUN: &'static str = "vm";
    // Disks are copied, and a guest that writes much takes long.
    const TIMEOUT: Duration = Duration::from_secs(12 * 3600);
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Begin), Arc::new(Place), Arc::new(Prepare), Arc::new(Move), Arc::new(Clean)]
    }
}

/// Takes the VM into `migrating`.
struct Begin;

#[async_trait]
impl Step<State> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let from = [VmState::Running, VmState::Paused];
        let before = db::vm::change(tx, state.id, &from, VmState::Migrating, at.generation, at.now).await?;
        if before.vm.state != VmState::Migrating {
            state.was = Some(before.vm.state);
        }
        let Some(source) = before.vm.host_id else {
            return Err(Error::new(Code::InvalidState, format!("vm {} is on no host", before.vm.name)).into());
        };
        if state.wanted == Some(source) {
            return Err(Error::invalid("host_id", format!("vm {} is on that host", before.vm.name)).into());
        }
        (state.vcpus, state.memory, state.source) = (before.vm.vcpus, before.vm.memory, Some(source));
        state.cluster = db::host::get(tx.conn(), source).await?.map(|row| row.host.cluster_id);
        state.volumes = volumes(tx, state.id).await?;
        state.uplinks = db::nic::uplinks(tx.conn(), state.id).await?;
        Ok(())
    }

    async fn unrecord(&self, tx: &mut Tx, at: &At, state: &State) -> db::Result<()> {
        let Some(now) = db::vm::get(tx.conn(), state.id).await? else { return Ok(()) };
        if let Some(was) = state.was
            && now.vm.state == VmState::Migrating
        {
            // Nobody knows on which of two hosts it is.
            let to = if now.moving_to.is_some() { VmState::Unknown } else { was };
            db::vm::change(tx, state.id, &[VmState::Migrating], to, at.generation, at.now).await?;
        }
        Ok(())
    }
}

async fn volumes(tx: &mut Tx, vm: VmId) -> db::Result<Vec<Moved>> {
    let mut moved = Vec::new();
    for volume in db::volume::of_vm(tx.conn(), vm).await? {
        if volume.state != VolumeState::Attached {
            let text = format!("volume {} is {}: wait until that is done", volume.name, volume.state);
            return Err(Error::new(Code::InvalidState, text).into());
        }
        let storage = spec::storage_spec(tx.conn(), volume.storage_id).await?;
        moved.push(Moved { id: volume.id, storage, size: volume.size });
    }
    Ok(moved)
}

/// Chooses a host and reserves what the VM needs there.
struct Place;

#[async_trait]
impl Step<State> for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let source = state.source.ok_or_else(|| Error::internal("a migration has no source"))?;
        let places = cx.deps.placement.shortlist(&state.request(), SHORTLIST).await?;
        let (mut fit, mut why) = (Vec::new(), Vec::new());
        let facts = db::soon(async {
            let mut conn = cx.deps.db.read().await?;
            let mut facts = Vec::new();
            for host in std::iter::once(source).chain(places.iter().map(|(host, _)| *host)) {
                facts.push(db::host::get(&mut conn, host).await?.map(|row| row.host));
            }
            Ok::<_, db::Error>(facts)
        });
        let mut facts = facts.await?.into_iter();
        let Some(from) = facts.next().flatten() else { return Err(Error::not_found("host", source)) };
        for host in facts.flatten() {
            match compatible(&from.facts, &host.facts) {
                Ok(()) => fit.push(host.id),
                Err(reason) => why.push(format!("host {}: {reason}", host.name)),
            }
        }
        if fit.is_empty() {
            let text = "no host with room can run the VM as it runs now";
            return Err(Error { causes: why, ..Error::new(Code::NoHostFits, text) });
        }
        state.shortlist = fit;
        Ok(())
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let shortlist = std::mem::take(&mut state.shortlist);
        for host in &shortlist {
            if reserve(tx, state, *host).await? {
                db::vm::set_moving_to(tx, state.id, Some(*host)).await?;
                state.target = Some(*host);
                return Ok(());
            }
        }
        Err(placement::given_away(&db::placement::of_hosts(tx.conn(), &shortlist).await?, &state.request()).into())
    }

    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        // Once the target was made ready, it is the undoing of `migrate` that finds out where the VM is.
        if state.prepared { Ok(()) } else { stays(tx, state).await }
    }
}

/// Reserves what the VM needs on a host; false when it is taken meanwhile.
async fn reserve(tx: &mut Tx, state: &State, host: HostId) -> db::Result<bool> {
    if !db::host::reserve(tx, host, state.vcpus, state.memory, true).await? {
        return Ok(false);
    }
    let mut done: Vec<&Moved> = Vec::new();
    for volume in state.local() {
        let storage = volume.storage.storage_id;
        if !db::storage::reserve(tx, storage, host, volume.size, state.storage_overcommit).await? {
            for volume in done {
                db::storage::release(tx, volume.storage.storage_id, host, volume.size).await?;
            }
            db::host::release(tx, host, i64::from(state.vcpus), state.memory.as_i64()).await?;
            return Ok(false);
        }
        done.push(volume);
    }
    Ok(true)
}

/// Whether a guest that runs on one host can go on on another, by what their agents found; the error says why
/// not.
fn compatible(from: &HostFacts, to: &HostFacts) -> std::result::Result<(), String> {
    if from.virt_mode != to.virt_mode {
        return Err("one host runs guests on the processor, the other emulates it".to_string());
    }
    if release_numbers(&to.qemu_version) < release_numbers(&from.qemu_version) {
        return Err(format!(
            "QEMU {} is older than {}, with which the VM was started",
            to.qemu_version, from.qemu_version
        ));
    }
    if from.virt_mode == VirtMode::Kvm {
        let missing: Vec<_> = from.cpu_flags.iter().filter(|flag| !to.cpu_flags.contains(flag)).cloned().collect();
        if !missing.is_empty() {
            return Err(format!("its processor has not {}", missing.join(", ")));
        }
    }
    Ok(())
}

/// Makes the target ready. Its undoing leaves a VM alone that is active there.
struct Prepare;

#[async_trait]
impl Step<State> for Prepare {
    fn name(&self) -> &'static str {
        "prepare"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        prepare(cx, state).await.map(|_| ())
    }

    async fn record(&self, _: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        state.prepared = true;
        Ok(())
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        let (_, target) = state.way()?;
        if on_host(cx, state).await? == Some(target) {
            // It has moved after all.
            return Ok(());
        }
        cx.command(target, 0, &AbandonMigration { vm_id: state.id }).await?;
        for (n, volume) in (1..).zip(state.local()) {
            cx.command(target, n, &DeleteVolume { volume_id: volume.id, storage: volume.storage.clone() }).await?;
        }
        Ok(())
    }
}

async fn prepare(cx: &StepCx, state: &State) -> Result<(shared::wire::vm::VmSpec, Landing)> {
    let (source, target) = state.way()?;
    let (_, vm) = spec::build(&cx.deps, state.id).await?;
    let landing = cx.command(target, 0, &PrepareMigration { vm: vm.clone(), from: source }).await?;
    Ok((vm, landing))
}

/// The host that the row says.
async fn on_host(cx: &StepCx, state: &State) -> Result<Option<HostId>> {
    let row = db::soon(async {
        let mut conn = cx.deps.db.read().await?;
        db::vm::get(&mut conn, state.id).await
    });
    Ok(row.await?.and_then(|row| row.vm.host_id))
}

/// Moves it.
struct Move;

#[async_trait]
impl Step<State> for Move {
    fn name(&self) -> &'static str {
        "migrate"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let (source, target) = state.way()?;
        // Once more: the target's agent may have been started anew, and knows of no guest that is to come.
        let (vm, landing) = prepare(cx, state).await?;
        let host = db::soon(async {
            let mut conn = cx.deps.db.read().await?;
            db::host::get(&mut conn, target).await
        });
        let host = host.await?.ok_or_else(|| Error::not_found("host", target))?;
        let command = MigrateVm { vm, to: target, address: host.host.address, landing };
        let Err(error) = cx.command(source, 1, &command).await else { return Ok(()) };
        // What was told may not be what is true: the answer may have been lost, or this is a second try.
        match look(cx, state).await {
            Ok(Found::Moved) => Ok(()),
            Ok(Found::Stayed) | Err(_) => Err(error),
        }
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        arrives(tx, state).await?;
        let to = state.was.unwrap_or(VmState::Running);
        db::vm::change(tx, state.id, &[VmState::Migrating, VmState::Unknown], to, at.generation, at.now).await?;
        Ok(())
    }

    async fn undo(&self, cx: &StepCx, state: &State) -> Result<()> {
        settle(cx, state).await
    }
}

/// Removes what is left on the source.
struct Clean;

#[async_trait]
impl Step<State> for Clean {
    fn name(&self) -> &'static str {
        "clean"
    }

    fn owed_when_failing(&self) -> bool {
        true
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        clean(cx, state).await
    }
}
