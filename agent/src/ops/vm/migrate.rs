//! `vm/prepare_migration`, `vm/migrate`, `vm/settle_migration` and `vm/abandon_migration`.
//!
//! ```text
//! target: prepare ──▶ (libvirt brings the domain) ──▶ runs here
//! source: migrate ──▶ libvirt sends it, by way of the two agents ──▶ gone from here
//!             └─ fails, is cancelled ──▶ runs on here
//! ```
//!
//! libvirt moves the definition with its metadata, generation included, and lets the domain run on one side
//! only. What is true after a failure is asked of libvirt on both sides; nothing is kept here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shared::api::storage::StorageKind;
use shared::id::VmId;
use shared::wire::Empty;
use shared::wire::vm::{
    AbandonMigration, Landing, MigrateVm, PowerState, PrepareMigration, Settle, SettleMigration, VmSpec, Whereabouts,
};
use shared::{Code, Error, Result};
use tokio::time::Instant;

use super::ensure::{add_leases, check, ensure_networks, ensure_volumes, takes_direct_io};
use super::present;
use crate::app::App;
use crate::cloud_init::{GuestData, vm_dir};
use crate::libvirt::migration::Migration;
use crate::relay::{self, Outgoing};
use crate::storage::local;
use crate::task::TaskCx;

/// How often libvirt is asked how far a migration is.
const LOOK: Duration = Duration::from_millis(500);
/// How long a migration may take to end after it was told to.
const ABORT: Duration = Duration::from_secs(60);

/// Makes this host ready to take a VM over.
///
/// # Errors
/// Those of networks, volumes and images; `invalid_state` when a shared volume is not there.
pub async fn prepare(app: &Arc<App>, cx: &TaskCx, command: PrepareMigration) -> Result<Landing> {
    let vm = &command.vm;
    check(vm)?;
    let dir = vm_dir(&app.config.agent.data_dir, vm.vm_id);
    let here = cx.until_cancelled(app.hypervisor.whereabouts(vm.vm_id)).await?;
    if !here.is_here() {
        cx.progress(10, "preparing networks and volumes");
        require_shared(app, cx, vm).await?;
        if !here.moving {
            renew_local(app, cx, vm).await?;
        }
        futures_util::try_join!(ensure_networks(app, cx, vm), ensure_volumes(app, cx, vm))?;
        cx.check()?;
        let (data, folder) = (GuestData::of(vm), dir.clone());
        tokio::task::spawn_blocking(move || data.write(&folder)).await.map_err(Error::internal)??;
        cx.until_cancelled(app.hypervisor.prepare_incoming()).await?;
        if !here.moving {
            relay::clear(&relay::sockets(app, vm.vm_id))?;
        }
    }
    add_leases(app, cx, vm).await?;
    app.expected.add(vm.vm_id, command.from);
    let bridges = vm.nics.iter().map(|nic| {
        let id = nic.network.network_id;
        Ok((id, app.networks.bridge_of(id)?))
    });
    Ok(Landing {
        bridges: bridges.collect::<Result<_>>()?,
        seed: dir.join("seed.img").display().to_string(),
        serial_log: dir.join("serial.log").display().to_string(),
        sockets: relay::sockets(app, vm.vm_id).display().to_string(),
        libvirt_version: cx.until_cancelled(app.hypervisor.versions()).await?.libvirt,
    })
}

/// A shared volume is not made here: when it is not there, this host sees another file system.
async fn require_shared(app: &Arc<App>, cx: &TaskCx, vm: &VmSpec) -> Result<()> {
    for disk in vm.disks.iter().filter(|d| d.volume.storage.kind == StorageKind::Shared) {
        let volume = &disk.volume;
        local::look(app, cx, &volume.storage).await?;
        let path = local::volume_path(&volume.storage, volume.volume_id, volume.format)?;
        if !path.is_file() {
            let text = format!("volume {} is not on the shared storage as this host sees it", volume.volume_id);
            return Err(Error::new(Code::InvalidState, text).with_detail(path.display().to_string()));
        }
        refuse_cached(&path, disk.volume.storage.path.as_str())?;
    }
    Ok(())
}

/// What an earlier attempt has left of a volume on this host's own disk goes: only what the guest has changed
/// is copied, onto a volume that nothing was written to.
async fn renew_local(app: &Arc<App>, cx: &TaskCx, vm: &VmSpec) -> Result<()> {
    for disk in vm.disks.iter().filter(|d| d.volume.storage.kind == StorageKind::Local) {
        local::delete(app, cx, disk.volume.volume_id, &disk.volume.storage).await?;
    }
    Ok(())
}

/// A disk that goes through the host's cache may be old on the other host.
fn refuse_cached(path: &Path, storage: &str) -> Result<()> {
    if takes_direct_io(path) {
        return Ok(());
    }
    let text =
        format!("the file system at {storage} takes no direct I/O: what one host has cached would be old on the other");
    Err(Error::new(Code::InvalidState, text))
}

/// Moves a VM to a host that was made ready.
///
/// # Errors
/// `invalid_state` when it does not run here; `not_found`; `host_unreachable` when the other host cannot be
/// reached from here; what libvirt says otherwise. The VM then goes on here, unless libvirt could not say so:
/// [`settle`] finds out.
pub async fn migrate(app: &Arc<App>, cx: &TaskCx, command: MigrateVm) -> Result<Empty> {
    let vm_id = command.vm.vm_id;
    // One of an earlier life of this agent may still be under way; its streams have ended with that.
    wait_for_job(app, cx, vm_id).await?;
    let now = present(app, cx, vm_id).await?;
    match now.power {
        PowerState::Running | PowerState::Paused => {}
        PowerState::Stopped | PowerState::Crashed => {
            return Err(Error::new(Code::InvalidState, "the VM does not run on this host"));
        }
    }
    let own = relay::sockets(app, vm_id);
    if own != Path::new(&command.landing.sockets) {
        let text = "both hosts must have the same [libvirt] migration_dir in their configurations";
        return Err(Error::new(Code::InvalidState, text).with_detail(command.landing.sockets.clone()));
    }
    for disk in command.vm.disks.iter().filter(|d| d.volume.storage.kind == StorageKind::Shared) {
        let path = local::volume_path(&disk.volume.storage, disk.volume.volume_id, disk.volume.format)?;
        refuse_cached(&path, &disk.volume.storage.path)?;
    }
    let streams = Outgoing::open(app, vm_id, command.to, &command.address, &own)?;
    let migration = plan(app, &command, &streams)?;
    cx.progress(1, "moving the VM");
    let began = Instant::now();
    let result = run(app, cx, vm_id, migration).await;
    let result = match (result, streams.failure()) {
        // libvirt only saw that a stream ended; the agents know why.
        (Err(error), Some(cause)) if !matches!(error.code, Code::Cancelled | Code::DeadlineExceeded) => {
            let detail = error.chain();
            Err(cause.during("the VM could not be moved").with_detail(detail))
        }
        (result, _) => result,
    };
    result?;
    tracing::info!(vm.id = %vm_id, to = %command.to, ms = began.elapsed().as_millis(), "the VM has moved");
    Ok(Empty {})
}

/// What libvirt is told: what lies elsewhere on the other host is replaced in the definition.
fn plan(app: &App, command: &MigrateVm, streams: &Outgoing) -> Result<Migration> {
    let (vm, landing) = (&command.vm, &command.landing);
    let dir = vm_dir(&app.config.agent.data_dir, vm.vm_id);
    let mut replace = vec![
        (dir.join("seed.img").display().to_string(), landing.seed.clone()),
        (dir.join("serial.log").display().to_string(), landing.serial_log.clone()),
    ];
    for (network, bridge) in &landing.bridges {
        replace.push((app.networks.bridge_of(*network)?, bridge.clone()));
    }
    replace.retain(|(here, there)| here != there);
    let copied = vm.disks.iter().filter(|disk| disk.volume.storage.kind == StorageKind::Local);
    Ok(Migration {
        libvirt_uri: streams.libvirt_uri(),
        memory_uri: streams.memory_uri(),
        disks_uri: streams.disks_uri(),
        copied: copied.map(|disk| disk.device.clone()).collect(),
        replace,
    })
}

/// Runs a migration to its end, telling how far it is; ends it when the task is cancelled.
async fn run(app: &Arc<App>, cx: &TaskCx, vm_id: VmId, migration: Migration) -> Result<()> {
    let mut work = std::pin::pin!(app.hypervisor.migrate(vm_id, migration));
    loop {
        tokio::select! {
            biased;
            ended = work.as_mut() => return ended.map_err(Into::into),
            () = cx.cancel.cancelled() => break,
            () = tokio::time::sleep_until(cx.deadline) => break,
            () = tokio::time::sleep(LOOK) => {
                if let Ok(Some(percent)) = app.hypervisor.migration_progress(vm_id).await {
                    cx.progress(percent.clamp(1, 99), "moving the VM");
                }
            }
        }
    }
    tracing::info!(vm.id = %vm_id, "the migration is ended");
    if let Err(error) = app.hypervisor.abort_migration(vm_id).await {
        tracing::warn!(vm.id = %vm_id, %error, "the migration could not be told to end");
    }
    match tokio::time::timeout(ABORT, work).await {
        // It was over before it heard.
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(cx.check().err().unwrap_or_else(|| error.into())),
        Err(_) => Err(Error::new(Code::HostFailed, "libvirt did not end the migration")),
    }
}

async fn wait_for_job(app: &Arc<App>, cx: &TaskCx, vm_id: VmId) -> Result<()> {
    while let Ok(Some(_)) = cx.until_cancelled(app.hypervisor.migration_progress(vm_id)).await {
        cx.sleep(LOOK).await?;
    }
    Ok(())
}

/// Looks where a VM is in a migration, and ends one or lets the VM go on when that is asked for.
///
/// # Errors
/// `host_failed` when libvirt does not end the migration.
pub async fn settle(app: &Arc<App>, cx: &TaskCx, command: SettleMigration) -> Result<Whereabouts> {
    let vm_id = command.vm_id;
    let mut here = cx.until_cancelled(app.hypervisor.whereabouts(vm_id)).await?;
    match command.act {
        Settle::Look => return Ok(here),
        Settle::Abort => {
            let end = Instant::now() + ABORT;
            while cx.until_cancelled(app.hypervisor.migration_progress(vm_id)).await?.is_some() {
                if Instant::now() >= end {
                    return Err(Error::new(Code::HostFailed, "libvirt did not end the migration"));
                }
                if let Err(error) = cx.until_cancelled(app.hypervisor.abort_migration(vm_id)).await {
                    tracing::debug!(vm.id = %vm_id, error = error.chain(), "the migration could not be told to end");
                }
                cx.sleep(LOOK).await?;
            }
        }
        Settle::GoOn => {
            if here.moving && here.power.is_some() {
                present(app, cx, vm_id).await?;
                cx.until_cancelled(app.hypervisor.resume(vm_id)).await?;
            }
        }
    }
    here = cx.until_cancelled(app.hypervisor.whereabouts(vm_id)).await?;
    if here.power.is_some() {
        // An older owner must not send it away again.
        present(app, cx, vm_id).await?;
    }
    Ok(here)
}

/// Takes back what was prepared for a VM that does not come.
///
/// # Errors
/// `in_use` while a domain of it is active here.
pub async fn abandon(app: &Arc<App>, cx: &TaskCx, command: AbandonMigration) -> Result<Empty> {
    let vm_id = command.vm_id;
    let here = cx.until_cancelled(app.hypervisor.whereabouts(vm_id)).await?;
    if matches!(here.power, Some(PowerState::Running | PowerState::Paused)) {
        return Err(Error::new(Code::InUse, "the VM is active on this host, or comes in"));
    }
    app.expected.remove(vm_id);
    relay::clear(&relay::sockets(app, vm_id))?;
    super::delete::forget(app, cx, vm_id).await?;
    Ok(Empty {})
}
