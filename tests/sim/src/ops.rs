//! The commands, as the contract in `shared::wire` says, done on the data of a simulated host.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::to_raw_value;
use shared::api::vm::{ConsoleLog, StopMode};
use shared::id::{ResourceId, VmId};
use shared::wire::event::AgentEvent;
use shared::wire::host::{InspectHost, Inventory, StorageReport};
use shared::wire::image::{DeleteImage, EnsureImage, ImageInfo, ImageSpec};
use shared::wire::network::{DeleteNetwork, EnsureNetwork};
use shared::wire::vm::{
    AbandonMigration, AttachVolume, DeleteVm, DetachVolume, EnsureVm, Landing, MigrateVm, PauseVm, PowerState,
    PrepareMigration, ReadConsoleLog, RebootVm, ResumeVm, SettleMigration, StopVm, VmReport, Whereabouts,
};
use shared::wire::volume::{CreateVolume, DeleteVolume};
use shared::wire::{AgentCommand, Empty};
use shared::{Code, Error, Result};
use tokio::time::Instant;
use uuid::Uuid;

use super::fault::Halfway;
use super::host::Host;
use super::state::{is_active, parts};
use super::task::{Outcome, TaskCx};

macro_rules! commands {
    ($($command:ty => $verb:path;)*) => {
        /// The resource that a command is about.
        pub(super) fn resource(path: &str, body: &[u8]) -> Result<Uuid> {
            match path {
                $(<$command as AgentCommand>::PATH => Ok(read::<$command>(body)?.resource()),)*
                _ => Err(Error::new(Code::UnknownMessage, "this agent does not know the command")),
            }
        }

        /// Runs a command.
        pub(super) async fn run(host: &Arc<Host>, cx: &TaskCx, path: &str, body: &[u8]) -> Outcome {
            match path {
                $(<$command as AgentCommand>::PATH => reply::<$command>($verb(host, cx, read(body)?).await),)*
                _ => Err(Error::new(Code::UnknownMessage, "this agent does not know the command")),
            }
        }

        /// Paths of all commands.
        pub const PATHS: &[&str] = &[$(<$command as AgentCommand>::PATH),*];
    };
}

commands! {
    InspectHost => inspect;
    EnsureImage => ensure_image;
    DeleteImage => delete_image;
    CreateVolume => create_volume;
    DeleteVolume => delete_volume;
    EnsureNetwork => ensure_network;
    DeleteNetwork => delete_network;
    EnsureVm => ensure_vm;
    StopVm => stop_vm;
    RebootVm => reboot_vm;
    PauseVm => pause_vm;
    ResumeVm => resume_vm;
    DeleteVm => delete_vm;
    AttachVolume => attach_volume;
    DetachVolume => detach_volume;
    PrepareMigration => prepare_migration;
    MigrateVm => migrate_vm;
    SettleMigration => settle_migration;
    AbandonMigration => abandon_migration;
    ReadConsoleLog => read_console_log;
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|e| Error::new(Code::InvalidRequest, format!("the command cannot be read: {e}")))
}

fn reply<C: AgentCommand>(result: Result<impl Serialize>) -> Outcome {
    let reply = to_raw_value(&result?).map_err(Error::internal)?;
    // What is not the command's reply would only be found on the other side of the wire.
    serde_json::from_str::<C::Reply>(reply.get()).map_err(Error::internal)?;
    Ok(reply)
}

/// Ends an operation in the middle when a fault says so.
async fn halfway(host: &Arc<Host>, cx: &TaskCx) -> Result<()> {
    match &cx.halfway {
        None => Ok(()),
        Some(Halfway::Fail(error)) => Err(error.clone()),
        Some(Halfway::Restart) => {
            host.restart();
            // The task ends here, with the life of the agent.
            std::future::pending().await
        }
    }
}

async fn inspect(host: &Arc<Host>, _cx: &TaskCx, command: InspectHost) -> Result<Inventory> {
    if command.host_id != host.id {
        return Err(Error::new(Code::InvalidRequest, format!("this is host {}", host.id)));
    }
    let storages = command.storages.iter().map(|spec| spec.storage_id).collect::<Vec<_>>();
    let mut inventory = host.inventory()?;
    inventory.volumes.retain(|(storage, _)| storages.contains(storage));
    let (total, available) = host.disk();
    inventory.storages =
        storages.into_iter().map(|storage_id| StorageReport { storage_id, total, available, error: None }).collect();
    Ok(inventory)
}

async fn ensure_image(host: &Arc<Host>, cx: &TaskCx, command: EnsureImage) -> Result<ImageInfo> {
    halfway(host, cx).await?;
    cached(host, &command.image).await
}

/// Brings an image into the cache.
async fn cached(host: &Arc<Host>, spec: &ImageSpec) -> Result<ImageInfo> {
    let there = host.state().images.get(&spec.image_id).cloned();
    let info = match there {
        Some(info) => info,
        None => host.fetch(spec).await?,
    };
    host.state().accept_image(spec, &info)
}

async fn delete_image(host: &Arc<Host>, cx: &TaskCx, command: DeleteImage) -> Result<Empty> {
    halfway(host, cx).await?;
    host.state().delete_image(command.image_id)?;
    Ok(Empty {})
}

async fn create_volume(host: &Arc<Host>, cx: &TaskCx, command: CreateVolume) -> Result<Empty> {
    if let Some(base) = &command.volume.base {
        cached(host, base).await?;
    }
    halfway(host, cx).await?;
    host.state().ensure_volume(&command.volume)?;
    Ok(Empty {})
}

async fn delete_volume(host: &Arc<Host>, cx: &TaskCx, command: DeleteVolume) -> Result<Empty> {
    halfway(host, cx).await?;
    host.state().delete_volume(command.volume_id)?;
    Ok(Empty {})
}

async fn ensure_network(host: &Arc<Host>, cx: &TaskCx, command: EnsureNetwork) -> Result<Empty> {
    halfway(host, cx).await?;
    host.state().networks.insert(command.network.network_id);
    Ok(Empty {})
}

async fn delete_network(host: &Arc<Host>, cx: &TaskCx, command: DeleteNetwork) -> Result<Empty> {
    halfway(host, cx).await?;
    host.state().delete_network(command.network_id)?;
    Ok(Empty {})
}

async fn ensure_vm(host: &Arc<Host>, cx: &TaskCx, command: EnsureVm) -> Result<VmReport> {
    host.state().check_libvirt()?;
    let (networks, volumes, images) = parts(&command.vm);
    host.state().networks.extend(networks);
    for image in images {
        cached(host, image).await?;
    }
    for volume in volumes {
        host.state().ensure_volume(volume)?;
    }
    halfway(host, cx).await?;
    let report = host.state().define(&command.vm, command.start, cx.generation)?;
    Ok(report)
}

/// A VM that must be here, after the generation of the command has been recorded with it.
fn present(host: &Host, cx: &TaskCx, vm_id: VmId) -> Result<PowerState> {
    let mut state = host.state();
    state.check_libvirt()?;
    let domain = state.domain(vm_id)?;
    domain.generation = domain.generation.max(cx.generation);
    Ok(domain.power)
}

fn set_power(host: &Arc<Host>, vm_id: VmId, power: PowerState) -> Result<VmReport> {
    let report = {
        let mut state = host.state();
        state.domain(vm_id)?.power = power;
        state.report(vm_id)?
    };
    Ok(report)
}

async fn stop_vm(host: &Arc<Host>, cx: &TaskCx, command: StopVm) -> Result<VmReport> {
    halfway(host, cx).await?;
    end(host, cx, command.vm_id, command.mode, command.timeout_s).await?;
    host.state().report(command.vm_id)
}

async fn reboot_vm(host: &Arc<Host>, cx: &TaskCx, command: RebootVm) -> Result<VmReport> {
    end(host, cx, command.vm_id, command.mode, command.timeout_s).await?;
    halfway(host, cx).await?;
    set_power(host, command.vm_id, PowerState::Running)
}

async fn end(host: &Arc<Host>, cx: &TaskCx, vm_id: VmId, mode: StopMode, timeout_s: u32) -> Result<()> {
    if !is_active(present(host, cx, vm_id)?) {
        return Ok(());
    }
    let deaf = host.state().deaf_guests;
    if deaf && mode != StopMode::Force {
        let patience = Instant::now() + Duration::from_secs(timeout_s.into());
        tokio::time::sleep_until(patience.min(cx.deadline)).await;
        if mode == StopMode::GracefulOnly {
            return Err(Error::new(Code::InvalidState, format!("the guest did not shut down within {timeout_s} s")));
        }
    }
    set_power(host, vm_id, PowerState::Stopped)?;
    Ok(())
}

async fn pause_vm(host: &Arc<Host>, cx: &TaskCx, command: PauseVm) -> Result<VmReport> {
    halfway(host, cx).await?;
    switch(host, cx, command.vm_id, PowerState::Paused)
}

async fn resume_vm(host: &Arc<Host>, cx: &TaskCx, command: ResumeVm) -> Result<VmReport> {
    halfway(host, cx).await?;
    switch(host, cx, command.vm_id, PowerState::Running)
}

fn switch(host: &Arc<Host>, cx: &TaskCx, vm_id: VmId, power: PowerState) -> Result<VmReport> {
    if !is_active(present(host, cx, vm_id)?) {
        return Err(Error::new(Code::InvalidState, "the VM does not run"));
    }
    set_power(host, vm_id, power)
}

async fn delete_vm(host: &Arc<Host>, cx: &TaskCx, command: DeleteVm) -> Result<Empty> {
    let vm_id = command.vm_id;
    host.state().check_libvirt()?;
    if host.state().vms.contains_key(&vm_id) {
        set_power(host, vm_id, PowerState::Stopped)?;
        halfway(host, cx).await?;
        host.state().vms.remove(&vm_id);
        host.push(AgentEvent::VmGone { vm_id });
    }
    Ok(Empty {})
}

async fn prepare_migration(host: &Arc<Host>, cx: &TaskCx, command: PrepareMigration) -> Result<Landing> {
    host.state().check_libvirt()?;
    let (networks, volumes, images) = parts(&command.vm);
    host.state().networks.extend(networks);
    if !host.state().vms.contains_key(&command.vm.vm_id) {
        for image in images {
            cached(host, image).await?;
        }
        for volume in volumes {
            host.state().ensure_volume(volume)?;
        }
    }
    halfway(host, cx).await?;
    host.state().expected.insert(command.vm.vm_id, command.from);
    Ok(Landing {
        bridges: Vec::new(),
        seed: String::new(),
        serial_log: String::new(),
        sockets: String::new(),
        libvirt_version: String::new(),
    })
}

/// The domain goes over whole: it is on one host or on the other at any time.
async fn migrate_vm(host: &Arc<Host>, cx: &TaskCx, command: MigrateVm) -> Result<Empty> {
    let vm_id = command.vm.vm_id;
    if !is_active(present(host, cx, vm_id)?) {
        return Err(Error::new(Code::InvalidState, "the VM does not run on this host"));
    }
    let target = host.neighbour(command.to);
    let target = target.ok_or_else(|| Error::new(Code::HostUnreachable, "the other host is not there"))?;
    if target.state().expected.get(&vm_id) != Some(&host.id) {
        return Err(Error::new(Code::Forbidden, "the VM is not expected there"));
    }
    target.state().check_libvirt()?;
    let domain = host.state().vms.remove(&vm_id);
    if let Some(domain) = domain {
        target.state().vms.insert(vm_id, domain);
        target.push(AgentEvent::VmChanged { vm: target.state().report(vm_id)? });
        host.push(AgentEvent::VmGone { vm_id });
    }
    halfway(host, cx).await?;
    Ok(Empty {})
}

async fn settle_migration(host: &Arc<Host>, cx: &TaskCx, command: SettleMigration) -> Result<Whereabouts> {
    halfway(host, cx).await?;
    host.state().check_libvirt()?;
    let there = host.state().vms.contains_key(&command.vm_id);
    let power = if there { Some(present(host, cx, command.vm_id)?) } else { None };
    Ok(Whereabouts { power, moving: false })
}

async fn abandon_migration(host: &Arc<Host>, cx: &TaskCx, command: AbandonMigration) -> Result<Empty> {
    let vm_id = command.vm_id;
    host.state().check_libvirt()?;
    if host.state().vms.get(&vm_id).is_some_and(|domain| is_active(domain.power)) {
        return Err(Error::new(Code::InUse, "the VM is active on this host"));
    }
    halfway(host, cx).await?;
    let mut state = host.state();
    state.expected.remove(&vm_id);
    state.vms.remove(&vm_id);
    Ok(Empty {})
}

async fn attach_volume(host: &Arc<Host>, cx: &TaskCx, command: AttachVolume) -> Result<Empty> {
    present(host, cx, command.vm_id)?;
    host.state().ensure_volume(&command.disk.volume)?;
    halfway(host, cx).await?;
    host.state().attach(command.vm_id, &command.disk)?;
    Ok(Empty {})
}

async fn detach_volume(host: &Arc<Host>, cx: &TaskCx, command: DetachVolume) -> Result<Empty> {
    present(host, cx, command.vm_id)?;
    halfway(host, cx).await?;
    while !host.state().detach(command.vm_id, command.volume_id)? {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Empty {})
}

async fn read_console_log(host: &Arc<Host>, _cx: &TaskCx, command: ReadConsoleLog) -> Result<ConsoleLog> {
    let name = host.state().domain(command.vm_id)?.name.clone();
    let text = format!("{name} ({}) is simulated\n", command.vm_id.uuid());
    let from = usize::try_from(command.offset.unwrap_or(0)).unwrap_or(usize::MAX).min(text.len());
    let to = (from + command.max as usize).min(text.len());
    Ok(ConsoleLog { text: text[from..to].to_string(), offset: from as u64, next_offset: to as u64 })
}
