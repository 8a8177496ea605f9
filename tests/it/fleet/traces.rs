//! One trace over several controllers: from the one that is asked, by way of the broker to the one that owns the VM, to
//! the host, and back.

use harness::client::Call;
use harness::fleet::Fleet;
use harness::sim::{Fault, What};
use reqwest::Method;
use shared::api::job::{JobRef, JobState};
use shared::api::vm::CreateVm;
use shared::error::Code;
use shared::id::VmId;
use trace::Trace;
use trace::testing::{Collector, Seen};

use crate::trace::{CLIENT, SERVER, named};

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_at_the_controller_that_owns_the_vm() -> anyhow::Result<()> {
    let collector = Collector::start().await;
    let fleet = Fleet::start(2, 1).await?;
    for controller in &fleet.controllers {
        controller.stop().await?;
        controller.configure(&format!("[tracing]\notlp_endpoint = \"{}\"", collector.url))?;
        controller.start().await?;
    }
    fleet.whole().await?;
    let (asked, owner) = (&fleet.controllers[0], &fleet.controllers[1]);
    let id = VmId::from_uuid(fleet.id_owned_by(owner.id()?).await?);
    // Something to tell about: the host cannot do it.
    fleet.sim.faults().add(Fault::new("vm/ensure", What::Fail { code: Code::HostFailed }));
    let (caller, body) = (Trace::new(), CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) });
    let call = Call::new(Method::POST, "/v1/vms").json(&body).header("traceparent", &caller.header());
    let reply = asked.api()?.send(call).await?;
    let request_id = reply.headers["x-request-id"].to_str()?.to_string();
    let job: JobRef = reply.read()?;
    assert_eq!(fleet.api.wait_job(job.job_id).await?.state, JobState::Failed);

    let trace_id = format!("{:032x}", caller.trace_id);
    let spans = collector
        .until(|spans| {
            let ours: Vec<Seen> = spans.iter().filter(|span| span.trace_id == trace_id).cloned().collect();
            // Each controller tells its own when it likes.
            let there = |name, kind| named(&ours, name, kind).is_some();
            (there("vm.create", 1) && there("POST /v1/vms", SERVER)).then_some(ours)
        })
        .await;
    // From the command on the host back to the caller: what was tried in vain before is another branch.
    let mut span = named(&spans, "vm/ensure", CLIENT);
    let mut causes = Vec::new();
    while let Some(this) = span {
        causes.push((this.name.as_str(), this.kind, this.instance.as_str()));
        span = spans.iter().find(|other| other.id == this.parent);
        if span.is_none() {
            assert_eq!(this.parent, format!("{:016x}", caller.span_id));
        }
    }
    let (first, second) = (asked.id()?.to_string(), owner.id()?.to_string());
    let expected = [
        ("vm/ensure", CLIENT, second.as_str()),
        ("step build", 1, &second),
        ("vm.create", 1, &second),
        ("vm.CreateVm", SERVER, &second),
        ("vm.CreateVm", CLIENT, &first),
        ("POST /v1/vms", SERVER, &first),
    ];
    assert_eq!(causes, expected, "{spans:#?}");
    for (controller, id) in [(asked, &first), (owner, &second)] {
        let log = controller.log();
        let told = |line: &str| line.contains(&request_id) && line.contains(&trace_id);
        assert!(
            log.lines().any(told),
            "{id} logs nothing with {request_id} and {trace_id}: {}",
            controller.log_tail(30)
        );
    }
    fleet.stop().await
}
