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

/// How long a report may be on its way to the other controllers.
const PASS_ON: Duration = Duration::from_secs(30);

/// Takes what agents report.
pub struct Callbacks {
    /// Who waits here.
    pub agents: Arc<Agents>,
    /// The way to the other controllers.
    pub bus: Arc<Bus>,
}

impl CallbackSink for Callbacks {
    fn deliver(&self, host: HostId, report: TaskReport) -> bool {
        if self.agents.deliver(host, report.clone()) {
            return true;
        }
        let others = self.bus.is_shared();
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use shared::id::{ControllerId, TaskId};
    use tokio::sync::{mpsc, watch};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::bus::{Health, Limits, Loopback, Told, Transport};
    use crate::clock::Clock;
    use crate::ring::Ring;

    /// Carries what one controller publishes to the other.
    struct To(mpsc::Sender<Vec<u8>>);

    #[async_trait]
    impl Transport for To {
        async fn send(&self, _: ControllerId, _: &str, _: Vec<u8>, _: Duration) -> shared::Result<()> {
            Err(shared::Error::internal("nothing is asked here"))
        }
        async fn broadcast(&self, bytes: Vec<u8>) -> shared::Result<Told> {
            self.0.send(bytes).await.map_err(shared::Error::internal)?;
            Ok(Box::pin(std::future::ready(Ok(()))))
        }
        async fn forget(&self, _: ControllerId) {}
        fn watch(&self) -> watch::Receiver<Health> {
            watch::channel(Health::local(Clock::default().now())).1
        }
        async fn close(&self) {}
    }

    fn controller(ring: &Ring, to: mpsc::Sender<Vec<u8>>, inbox: mpsc::Receiver<Vec<u8>>) -> Callbacks {
        let (tasks, clock) = (TaskTracker::new(), Clock::default());
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let agents = Agents::new(
            Arc::new(tls),
            "https://127.0.0.1:1".into(),
            tasks.clone(),
            CancellationToken::new(),
            clock.clone(),
            ring.clone(),
        );
        let mut registry = Registry::new(tasks.clone());
        subscribe(&mut registry, &agents);
        let way = (Arc::new(To(to)) as Arc<dyn Transport>, inbox);
        let stop = (tasks, CancellationToken::new());
        let bus = Bus::start(registry, ring.clone(), clock, Limits::default(), Loopback::Direct, way, stop);
        Callbacks { agents, bus }
    }

    #[tokio::test]
    async fn a_report_reaches_who_waits_at_another_controller() {
        let (one, two) = (ControllerId::new(), ControllerId::new());
        let (ring_one, ring_two) = (Ring::new(one), Ring::new(two));
        let ((to_one, in_one), (to_two, in_two)) = (mpsc::channel(8), mpsc::channel(8));
        let (first, second) = (controller(&ring_one, to_two, in_one), controller(&ring_two, to_one, in_two));
        let (host, task) = (HostId::new(), TaskId::new());
        let report = TaskReport::Done { task_id: task, reply: serde_json::json!({}) };
        ring_one.install(1, &[one]);
        assert!(!first.deliver(host, report.clone()), "alone, and nobody waits");
        ring_one.install(2, &[one, two]);
        ring_two.install(2, &[one, two]);
        let mut reported = second.agents.expect(host, task);
        assert!(first.deliver(HostId::new(), report.clone()), "passed on, but it is of another host");
        assert!(first.deliver(host, report.clone()));
        assert_eq!(reported.recv().await, Some(report));
        assert!(reported.try_recv().is_err());
    }
}
