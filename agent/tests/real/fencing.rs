//! A controller that has lost a VM cannot act on it any more, whatever the agent has forgotten: the newest
//! generation is kept with the domain.

use std::time::Duration;

use ::agent::ops;
use ::agent::service::Running;
use ::agent::task::Order;
use shared::api::network::NetworkKind;
use shared::api::vm::StopMode;
use shared::id::TaskId;
use shared::wire::AgentCommand;
use shared::wire::vm::{DeleteVm, PauseVm, PowerState, ResumeVm, StopVm};
use shared::{Code, Result};
use tokio::time::Instant;

use crate::agent::{Host, ensure, network, start};
use crate::lab::{on_host, sh};

/// Gives a command to an agent as its listener does: by the table of tasks, which refuses what is stale.
async fn command<C: AgentCommand>(agent: &Running, generation: u64, command: &C) -> Result<C::Reply> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let order = Order { task_id: TaskId::new(), callback: None, generation, sequence: None, deadline, scope: None };
    let prepared = ops::prepare(C::PATH, &serde_json::to_vec(command).unwrap())?;
    let entry = agent.app.tasks.submit(&agent.app, order, prepared)?;
    let outcome = entry.outcome_by(deadline).await.unwrap();
    outcome.map(|reply| serde_json::from_value(reply).unwrap())
}

#[test]
fn real_a_former_owner_is_refused_also_after_the_agent_has_forgotten() {
    on_host("fencing::real_a_former_owner_is_refused_also_after_the_agent_has_forgotten", async {
        let host = Host::start().await;
        let vm = host.vm(&network(NetworkKind::Isolated, 21), "10.77.21.10", None);
        let vm_id = vm.vm_id;
        let stop = StopVm { vm_id, mode: StopMode::Force, timeout_s: 1 };
        let (former, next) = (41, 44);
        command(&host.agent, former, &ensure(&vm)).await.unwrap();
        // The next owner acts; what the former one had sent arrives late.
        command(&host.agent, next, &PauseVm { vm_id }).await.unwrap();
        let late = command(&host.agent, former, &stop).await.unwrap_err();
        assert_eq!(late.code, Code::StaleGeneration, "{late:?}");
        let recorded = sh(&format!("virsh dumpxml kring-{vm_id}"));
        assert!(recorded.contains(&format!("generation=\"{next}\"")), "{recorded}");

        // Another process of the agent knows nothing but what it reads back.
        let Host { dir, agent } = host;
        agent.stop().await;
        let agent = start(dir.path()).await;
        for _ in 0..2 {
            let late = command(&agent, former, &stop).await.unwrap_err();
            assert_eq!(late.code, Code::StaleGeneration, "{late:?}");
        }
        let late = command(&agent, next - 1, &DeleteVm { vm_id }).await.unwrap_err();
        assert_eq!(late.code, Code::StaleGeneration, "{late:?}");
        assert_eq!(sh(&format!("virsh domstate kring-{vm_id}")), "paused");
        let report = command(&agent, next, &ResumeVm { vm_id }).await.unwrap();
        assert_eq!((report.power, report.generation), (PowerState::Running, next));

        // A repeated definition keeps the newest one, and libvirt does too when it is restarted.
        command(&agent, next + 1, &ensure(&vm)).await.unwrap();
        sh("kill -KILL $(cat /run/libvirtd.pid); rm -f /run/libvirtd.pid");
        sh("setsid libvirtd -d --pid-file /run/libvirtd.pid >/dev/null 2>&1 </dev/null");
        agent.stop().await;
        let agent = start(dir.path()).await;
        let late = command(&agent, next, &stop).await.unwrap_err();
        assert_eq!(late.code, Code::StaleGeneration, "{late:?}");
        assert_eq!(sh(&format!("virsh domstate kring-{vm_id}")), "running");
        command(&agent, next + 1, &DeleteVm { vm_id }).await.unwrap();
        agent.app.networks.purge(&tokio_util::sync::CancellationToken::new()).await.unwrap();
        agent.stop().await;
    });
}
