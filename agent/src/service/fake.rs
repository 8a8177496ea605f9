//! A hypervisor in memory, for tests of the agent around it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use async_trait::async_trait;
use shared::id::{VmId, VolumeId};
use shared::wire::event::AgentEvent;
use shared::wire::vm::{PowerState, VmReport, Whereabouts, digest};
use tokio::sync::{Semaphore, broadcast, watch};

use crate::libvirt::metadata::Identity;
use crate::libvirt::migration::Migration;
use crate::libvirt::xml::device::Disk;
use crate::libvirt::xml::domain::DomainSpec;
use crate::libvirt::{Consoles, Error, Hypervisor, Listing, ShutdownBy, Summary, Versions};

/// Domains in memory. `suspend` waits for a permit of `gate`; `resume` panics.
pub(crate) struct Fake {
    vms: Mutex<HashMap<VmId, VmReport>>,
    /// Lets calls of `suspend` go on.
    pub gate: Semaphore,
    /// Calls of `suspend` that have begun.
    pub suspends: AtomicUsize,
    /// What `summary` answers instead, when there is something.
    pub broken: Mutex<Option<String>>,
    /// What `disk_paths` answers.
    pub disks: Mutex<Vec<PathBuf>>,
    /// Port of the VNC console.
    pub vnc: AtomicU16,
    pub events: broadcast::Sender<AgentEvent>,
    changes: watch::Sender<u64>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            vms: Mutex::default(),
            gate: Semaphore::new(0),
            suspends: AtomicUsize::new(0),
            broken: Mutex::default(),
            disks: Mutex::default(),
            vnc: AtomicU16::new(0),
            events: broadcast::channel(16).0,
            changes: watch::channel(0).0,
        }
    }
}

impl Fake {
    /// Adds a VM that runs, last changed under `generation`.
    pub(crate) fn running(&self, generation: u64) -> VmId {
        let vm_id = VmId::new();
        let report = VmReport { vm_id, power: PowerState::Running, generation };
        self.vms.lock().unwrap().insert(vm_id, report);
        vm_id
    }

    pub(crate) fn report(&self, vm_id: VmId) -> VmReport {
        self.vms.lock().unwrap()[&vm_id].clone()
    }

    fn change(&self, vm_id: VmId, power: PowerState) {
        if let Some(vm) = self.vms.lock().unwrap().get_mut(&vm_id) {
            vm.power = power;
        }
        self.changes.send_modify(|n| *n += 1);
    }
}

#[async_trait]
impl Hypervisor for Fake {
    async fn list(&self) -> Result<Listing, Error> {
        if let Some(reason) = self.broken.lock().unwrap().clone() {
            return Err(Error::Unreachable { reason });
        }
        Ok(Listing { vms: self.vms.lock().unwrap().values().cloned().collect(), foreign: vec!["other".into()] })
    }
    async fn get(&self, vm_id: VmId) -> Result<Option<VmReport>, Error> {
        Ok(self.vms.lock().unwrap().get(&vm_id).cloned())
    }
    async fn identity(&self, _: VmId) -> Result<Option<Identity>, Error> {
        Ok(None)
    }
    async fn identities(&self) -> Result<Vec<Identity>, Error> {
        Ok(Vec::new())
    }
    async fn generation(&self, vm_id: VmId) -> Result<Option<u64>, Error> {
        Ok(self.vms.lock().unwrap().get(&vm_id).map(|vm| vm.generation))
    }
    async fn set_generation(&self, vm_id: VmId, generation: u64) -> Result<(), Error> {
        if let Some(vm) = self.vms.lock().unwrap().get_mut(&vm_id) {
            vm.generation = vm.generation.max(generation);
        }
        Ok(())
    }
    async fn define(&self, _: &DomainSpec) -> Result<(), Error> {
        Ok(())
    }
    async fn start(&self, vm_id: VmId) -> Result<(), Error> {
        self.change(vm_id, PowerState::Running);
        Ok(())
    }
    async fn shutdown(&self, _: VmId, _: ShutdownBy) -> Result<(), Error> {
        Ok(())
    }
    async fn destroy(&self, vm_id: VmId) -> Result<(), Error> {
        self.change(vm_id, PowerState::Stopped);
        Ok(())
    }
    async fn suspend(&self, vm_id: VmId) -> Result<(), Error> {
        self.suspends.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        self.change(vm_id, PowerState::Paused);
        Ok(())
    }
    async fn resume(&self, _: VmId) -> Result<(), Error> {
        panic!("a defect in the operation");
    }
    async fn undefine(&self, vm_id: VmId) -> Result<(), Error> {
        self.vms.lock().unwrap().remove(&vm_id);
        Ok(())
    }
    async fn attach_disk(&self, _: VmId, _: &Disk) -> Result<(), Error> {
        Ok(())
    }
    async fn detach_disk(&self, _: VmId, _: VolumeId) -> Result<bool, Error> {
        Ok(true)
    }
    async fn disk_paths(&self) -> Result<Vec<PathBuf>, Error> {
        Ok(self.disks.lock().unwrap().clone())
    }
    async fn dumpxml(&self, vm_id: VmId) -> Result<String, Error> {
        Err(Error::NoDomain(vm_id))
    }
    async fn consoles(&self, _: VmId) -> Result<Consoles, Error> {
        Ok(Consoles { serial: None, vnc_port: Some(self.vnc.load(Ordering::SeqCst)) })
    }
    async fn prepare_incoming(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn migrate(&self, vm_id: VmId, _: Migration) -> Result<(), Error> {
        Err(Error::NoDomain(vm_id))
    }
    async fn migration_progress(&self, _: VmId) -> Result<Option<u8>, Error> {
        Ok(None)
    }
    async fn abort_migration(&self, _: VmId) -> Result<(), Error> {
        Ok(())
    }
    async fn whereabouts(&self, vm_id: VmId) -> Result<Whereabouts, Error> {
        Ok(Whereabouts { power: self.power(vm_id), moving: false })
    }
    async fn remove_filters(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn versions(&self) -> Result<Versions, Error> {
        Ok(Versions { libvirt: "9.0.0".into(), qemu: "7.2.0".into() })
    }
    fn summary(&self) -> Result<Summary, String> {
        match self.broken.lock().unwrap().clone() {
            Some(reason) => Err(reason),
            None => {
                let digest = digest(self.vms.lock().unwrap().values().map(|vm| (&vm.vm_id, &vm.power)));
                Ok(Summary { digest, changes: *self.changes.borrow() })
            }
        }
    }
    fn power(&self, vm_id: VmId) -> Option<PowerState> {
        self.vms.lock().unwrap().get(&vm_id).map(|vm| vm.power)
    }
    fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.events.subscribe()
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
