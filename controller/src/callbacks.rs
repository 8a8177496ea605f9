//! Reports of agents on their tasks: to whoever waits for them, here or at another controller.
//!
//! A report comes to the controller that issued the command, or, when that one is gone, to any other.
//! Who waits is then the resource's new owner, or nobody yet: the new owner sends the command again
//! under the same task id and is answered with the outcome.

use std::sync::Arc;
use std::time::Duration;

use shared::id::HostId;
use shared::wire::TaskReport;

use crate::agent_client::Agents;
use crate::api::CallbackSink;
use crate::bus::{Bus, Registry};
use crate::cx::Cx;
use crate::messages::host::TaskReported;
use crate::ring::Ring;

/// How long a report may be on its way to the other controllers.
const PASS_ON: Duration = Duration::from_secs(30);

/// Takes what agents report.
pub struct Callbacks {
    /// Who waits here.
    pub agents: Arc<Agents>,
    /// The way to the other controllers.
    pub bus: Arc<Bus>,
    /// Whether there are any.
    pub ring: Ring,
}

impl CallbackSink for Callbacks {
    fn deliver(&self, host: HostId, report: TaskReport) -> bool {
        if self.agents.deliver(host, report.clone()) {
            return true;
        }
        let others = self.ring.members().len() > 1;
        if others {
            tracing::debug!(host.id = %host, task.id = %report.task_id(), "a report is passed on to the other controllers");
            self.bus.publish(&Cx::system(PASS_ON), &TaskReported { host_id: host, report });
        }
        others
    }
}

/// Lets this controller take the reports that arrived at others.
pub fn subscribe(registry: &mut Registry, agents: &Arc<Agents>) {
    let agents = Arc::clone(agents);
    registry.subscribe(move |TaskReported { host_id, report }: TaskReported| {
        // False nearly always: one controller at most waits for it.
        agents.deliver(host_id, report);
        std::future::ready(())
    });
}
