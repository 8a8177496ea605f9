//! What one running agent consists of. Built once in `main.rs` (and by tests with a fake hypervisor),
//! then shared; nothing here is a resource's state.

use std::sync::{Arc, Mutex, PoisonError};

use shared::id::{ResourceId, VmId};
use shared::wire::event::AgentEvent;
use shared::wire::host::Finding;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::config::Config;
use crate::controller;
use crate::controller::news::{News, Told};
use crate::identity;
use crate::libvirt::Hypervisor;
use crate::network::Networks;
use crate::relay::Expected;
use crate::storage::images::Images;
use crate::storage::shared::Looks;
use crate::task::Tasks;

/// One running agent.
pub struct App {
    /// How it is configured.
    pub config: Config,
    /// Who it is, and its certificates; swapped when they are renewed.
    pub identity: Arc<identity::Current>,
    /// libvirt.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Networks of guests.
    pub networks: Networks,
    /// The way to the controllers.
    pub controller: controller::Client,
    /// What the controllers know of the VMs here.
    pub news: Mutex<News>,
    /// The image cache.
    pub images: Images,
    /// Looks at shared storages.
    pub looks: Looks,
    /// What was last found of the host, and when.
    pub checked: tokio::sync::Mutex<Option<(Instant, Vec<Finding>)>>,
    /// Migrations that this host is ready to take.
    pub expected: Expected,
    /// Commands that run and that ran.
    pub tasks: Tasks,
    /// Cancelled when the agent stops.
    pub shutdown: CancellationToken,
    /// Owns everything that is spawned; waited for when the agent stops.
    pub tracker: TaskTracker,
    /// The kernel's boot id: another one means that the host was restarted.
    pub boot_id: Uuid,
    /// This process: another one means that its tasks are forgotten.
    pub agent_id: Uuid,
}

impl App {
    /// libvirt has told something: the controllers are told as well, if it is news to them.
    pub fn pass_on(&self, event: AgentEvent) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked under the lock: a command that ends now comes after this with what it has to say.
        let busy = event.vm_id().is_some_and(|id| self.tasks.works_on(id.uuid()));
        if let Some(event) = news.event(event, busy) {
            self.controller.events.push(event);
        }
    }

    /// A command about a VM has ended: what it does not tell is told now.
    pub fn command_ended(&self, vm_id: VmId, told: Told) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = news.ended(vm_id, told, self.tasks.works_on(vm_id.uuid())) {
            self.controller.events.push(event);
        }
    }
}

/// The version in pongs and facts.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The kernel's boot id.
///
/// # Errors
/// When `/proc` does not tell it.
pub fn boot_id() -> std::io::Result<Uuid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Uuid::try_parse(text.trim()).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}
