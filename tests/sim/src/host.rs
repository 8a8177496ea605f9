//! One simulated host: its lives as an agent, its faults as a machine, and what an operator does on
//! it behind the controller's back.

mod speak;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::Result;
use shared::id::{HostId, TaskId, VmId};
use shared::name::Name;
use shared::time::Timestamp;
use shared::units::Bytes;
use shared::wire::event::AgentEvent;
use shared::wire::host::{HostFacts, Inventory, NicFact, Pong, VirtMode};
use shared::wire::vm::PowerState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::fault::{Plan, chance};
use super::history::{Action, Fate, Note};
use super::pings::Pings;
use super::state::{Domain, State};
use super::task::{Order, Table};
use super::tls::Identity;
use super::{HostSpec, Shared};

/// What one process of the agent has.
pub(super) struct Life {
    pub token: CancellationToken,
    pub agent_id: Uuid,
    table: Mutex<Table>,
}

impl Life {
    fn new(token: CancellationToken) -> Arc<Self> {
        Arc::new(Self { token, agent_id: Uuid::new_v4(), table: Mutex::default() })
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One simulated host.
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Where its agent listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    spec: HostSpec,
    identity: Mutex<Arc<Identity>>,
    life: Mutex<Arc<Life>>,
    boot_id: Mutex<Uuid>,
    state: Mutex<State>,
    events: Mutex<VecDeque<AgentEvent>>,
    sending: AtomicBool,
    silent: AtomicBool,
    requests: AtomicU64,
    clock_ahead_ms: AtomicI64,
    frozen: watch::Sender<bool>,
    listening: Mutex<Option<CancellationToken>>,
    /// Where controllers say that they are.
    controllers: Mutex<Vec<String>>,
    /// When it was pinged.
    pub pings: Pings,
}

/// A task is being worked on.
pub(super) struct Working<'h> {
    host: &'h Host,
    agent_id: Uuid,
    task: TaskId,
    resource: Uuid,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let Self { host, agent_id, resource, task } = *self;
        self.host.shared.history.note(|| Note::Ended { host: host.id, agent_id, resource, task });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// A host that has joined and is called at `address`.
    pub(super) fn start(shared: Arc<Shared>, spec: HostSpec, identity: Identity, address: SocketAddr) -> Arc<Self> {
        let identity = shared.adopt(identity);
        let life = Life::new(shared.stop.child_token());
        let host = Arc::new(Self {
            id: identity.host_id,
            name: spec.name.clone(),
            address,
            spec,
            identity: Mutex::new(identity),
            life: Mutex::new(life),
            boot_id: Mutex::new(Uuid::new_v4()),
            state: Mutex::default(),
            events: Mutex::default(),
            sending: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            clock_ahead_ms: AtomicI64::new(0),
            frozen: watch::Sender::new(false),
            listening: Mutex::new(Some(shared.stop.child_token())),
            controllers: Mutex::default(),
            pings: Pings::default(),
            shared,
        });
        lock(&host.shared.neighbours).insert(host.id, Arc::downgrade(&host));
        host
    }

    /// Another host that this one can reach.
    pub(super) fn neighbour(&self, id: HostId) -> Option<Arc<Self>> {
        lock(&self.shared.neighbours).get(&id)?.upgrade()
    }

    /// Cancelled when nobody listens any more; `None` when nobody does.
    pub(super) fn listening(&self) -> Option<CancellationToken> {
        lock(&self.listening).clone()
    }

    /// What is on the host. Not held across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Certificate and key, to act as this host.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&lock(&self.identity))
    }

    pub(super) fn life(&self) -> Arc<Life> {
        Arc::clone(&lock(&self.life))
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(task);
    }

    pub(super) fn server_config(&self) -> Arc<rustls::ServerConfig> {
        self.shared.server_config()
    }

    /// What happens to the next request.
    pub(super) fn plan(&self, path: &str, from: &str) -> Plan {
        let n = self.requests.fetch_add(1, Relaxed);
        let mut plan = self.shared.faults.plan(self.id, path, from, n);
        let salt = match self.address.ip() {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(_) => 0,
        };
        plan.defer |= chance(self.shared.options.seed, salt, n) < self.shared.options.deferred;
        plan
    }

    /// Notes what became of a command.
    pub(super) fn note(&self, order: &Order, resource: Uuid, path: &str, fate: Fate) {
        self.shared.history.note(|| {
            Note::Command(Action {
                host: self.id,
                resource,
                path: path.to_string(),
                task: order.task_id,
                generation: order.generation,
                fate,
            })
        });
    }

    /// Notes that the work of a task begins, and with the drop of what it gives that it is over.
    pub(super) fn working(&self, agent_id: Uuid, task: TaskId, resource: Uuid, path: &str) -> Working<'_> {
        self.shared.history.note(|| Note::Began { host: self.id, agent_id, resource, path: path.to_string(), task });
        Working { host: self, agent_id, task, resource }
    }

    /// The generation that is recorded with a VM's domain.
    pub(super) fn recorded_generation(&self, resource: Uuid) -> u64 {
        self.state().vms.get(&VmId::from_uuid(resource)).map_or(0, |domain| domain.generation)
    }

    /// Bytes of the disk, and how many are free.
    #[must_use]
    pub fn disk(&self) -> (Bytes, Bytes) {
        (self.spec.disk, self.state().available.unwrap_or(self.spec.disk))
    }

    /// What the agent finds on the host.
    #[must_use]
    pub fn facts(&self) -> HostFacts {
        HostFacts { clock_ms: self.clock_ms(), ..facts(&self.spec) }
    }

    /// The host's own clock.
    pub(super) fn clock_ms(&self) -> i64 {
        Timestamp::now().ms() + self.clock_ahead_ms.load(Relaxed)
    }

    /// Everything of Kring on the host, with all storages.
    ///
    /// # Errors
    /// `host_failed` while libvirt does not answer.
    pub fn inventory(&self) -> Result<Inventory> {
        let facts = self.facts();
        let state = self.state();
        state.check_libvirt()?;
        Ok(Inventory {
            facts,
            vms: state.reports(),
            foreign_domains: state.foreign.iter().cloned().collect(),
            volumes: state.volumes.iter().map(|(id, volume)| (volume.storage_id, *id)).collect(),
            images: state.images.keys().copied().collect(),
            networks: state.networks.iter().copied().collect(),
            storages: Vec::new(),
        })
    }

    pub(super) fn pong(&self) -> Pong {
        self.pings.note(self.shared.born.elapsed());
        let (digest, changes, libvirt_error) = {
            let state = self.state();
            (state.digest(), state.changes(), state.libvirt_error.clone())
        };
        Pong {
            host_id: self.id,
            boot_id: *lock(&self.boot_id),
            agent_id: self.life().agent_id,
            agent_version: env!("CARGO_PKG_VERSION").to_string(),
            digest,
            changes: Some(changes),
            libvirt_error,
        }
    }

    // ---- What happens to the agent and to the machine.

    /// Kills the agent and starts it again: its tasks are forgotten, what is on the host stays.
    pub fn restart(self: &Arc<Self>) {
        let next = Life::new(self.shared.stop.child_token());
        let mut life = lock(&self.life);
        // Before anything that the next one does.
        self.shared.history.note(|| Note::Restarted(self.id));
        std::mem::replace(&mut *life, next).token.cancel();
        drop(life);
        self.push(AgentEvent::AgentStarted);
    }

    /// Restarts the machine: as [`Self::restart`], and no domain runs afterwards.
    pub fn reboot(self: &Arc<Self>) {
        for domain in self.state().vms.values_mut() {
            domain.power = PowerState::Stopped;
        }
        *lock(&self.boot_id) = Uuid::new_v4();
        self.restart();
    }

    /// Nobody listens any more; what is on the host stays.
    pub fn down(&self) {
        if let Some(listening) = lock(&self.listening).take() {
            listening.cancel();
        }
        self.life().token.cancel();
        self.shared.history.note(|| Note::Restarted(self.id));
    }

    /// Listens again, as a new process of the agent.
    pub fn up(self: &Arc<Self>) {
        *lock(&self.listening) = Some(self.shared.stop.child_token());
        self.restart();
    }

    /// Takes connections and answers nothing until [`Self::thaw`].
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Goes on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    pub(super) async fn thawed(&self) {
        let mut frozen = self.frozen.subscribe();
        // The sender lives in this host, so this ends only when it is thawed.
        let _ = frozen.wait_for(|frozen| !frozen).await;
    }

    /// Removes everything from the host, as a reinstallation does.
    pub fn wipe(self: &Arc<Self>) {
        *self.state() = State::default();
        self.restart();
    }

    /// Whether events are pushed: a host that is silent is only found out by its pings.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Relaxed);
    }

    // ---- What an operator does there.

    /// Sets the clock, ahead of the right time or behind it.
    pub fn set_clock_ahead_ms(&self, ms: i64) {
        self.clock_ahead_ms.store(ms, Relaxed);
    }

    /// Changes what a domain is doing, as `virsh start`, `destroy`, `suspend` or a crash would.
    ///
    /// # Errors
    /// `not_found`.
    pub fn virsh(self: &Arc<Self>, vm_id: VmId, power: PowerState) -> Result<()> {
        let vm = {
            let mut state = self.state();
            state.domain(vm_id)?.power = power;
            state.report(vm_id)?
        };
        self.push(AgentEvent::VmChanged { vm });
        Ok(())
    }

    /// Undefines a domain, as `virsh undefine` would.
    pub fn virsh_undefine(self: &Arc<Self>, vm_id: VmId) {
        if self.state().vms.remove(&vm_id).is_some() {
            self.push(AgentEvent::VmGone { vm_id });
        }
    }

    /// Puts a domain onto the host that carries Kring's metadata and that no controller has made.
    pub fn plant(self: &Arc<Self>, vm_id: VmId, domain: Domain) {
        let vm = {
            let mut state = self.state();
            state.vms.insert(vm_id, domain);
            state.report(vm_id)
        };
        if let Ok(vm) = vm {
            self.push(AgentEvent::VmChanged { vm });
        }
    }
}

/// What an agent would find on such a host.
pub(super) fn facts(spec: &HostSpec) -> HostFacts {
    HostFacts {
        hostname: spec.name.to_hostname(),
        os: "Simulated".to_string(),
        kernel: "0".to_string(),
        arch: spec.arch.clone(),
        cpu_model: "Simulated".to_string(),
        cpu_flags: vec!["vmx".to_string()],
        cpus: spec.cpus,
        memory: spec.memory,
        nics: vec![NicFact { name: "eth0".to_string(), up: true, mtu: 1500, ..NicFact::default() }],
        libvirt_version: "9.0.0".to_string(),
        qemu_version: "7.2.0".to_string(),
        virt_mode: VirtMode::Kvm,
        agent_version: env!("CARGO_PKG_VERSION").to_string(),
        ..HostFacts::default()
    }
}
