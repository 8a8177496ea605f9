//! One trace from the API call over the bus to the host and back.

use harness::client::Call;
use harness::cluster::Setup;
use reqwest::Method;
use shared::api::job::JobRef;
use trace::Trace;
use trace::testing::{Collector, Seen};

use crate::vm::ready_with;

pub const SERVER: i64 = 2;
pub const CLIENT: i64 = 3;

pub fn named<'a>(spans: &'a [Seen], name: &str, kind: i64) -> Option<&'a Seen> {
    spans.iter().find(|span| span.name == name && span.kind == kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_one_trace_from_the_request_to_the_host_and_back() -> anyhow::Result<()> {
    let collector = Collector::start().await;
    let config = format!("[tracing]\notlp_endpoint = \"{}\"\n", collector.url);
    let (cluster, image, network) = ready_with(Setup { deferred: 1.0, config, ..Setup::default() }).await?;
    let caller = Trace::new();
    let body = cluster.vm_body(&image, &network);
    let call = Call::new(Method::POST, "/v1/vms").json(&body).header("traceparent", &caller.header());
    let reply = cluster.api.send(call).await?;
    let answered = reply.headers.get("traceparent").and_then(|header| Trace::parse(header.to_str().ok()?));
    let request_id = reply.headers["x-request-id"].to_str()?.to_string();
    let job: JobRef = reply.read()?;
    cluster.api.succeed(&job).await?;

    let trace_id = format!("{:032x}", caller.trace_id);
    let spans = collector
        .until(|spans| {
            let ours: Vec<Seen> = spans.iter().filter(|span| span.trace_id == trace_id).cloned().collect();
            // The job's span ends last.
            named(&ours, "vm.create", 1).is_some().then_some(ours)
        })
        .await;
    let find =
        |name, kind| named(&spans, name, kind).unwrap_or_else(|| panic!("{name} {kind} is missing in {spans:#?}"));
    let request = find("POST /v1/vms", SERVER);
    assert_eq!(request.parent, format!("{:016x}", caller.span_id));
    assert_eq!(answered.map(|trace| format!("{:016x}", trace.span_id)).as_deref(), Some(request.id.as_str()));
    assert_eq!(request.attributes["kring.request.id"], request_id);
    assert_eq!(request.attributes["http.response.status_code"], "202");
    let asked = find("vm.CreateVm", CLIENT);
    let handled = find("vm.CreateVm", SERVER);
    let flow = find("vm.create", 1);
    let step = find("step build", 1);
    let command = find("vm/ensure", CLIENT);
    let callback = find("POST /agent/v1/callbacks/{task}", SERVER);
    for (child, parent) in
        [(asked, request), (handled, asked), (flow, handled), (step, flow), (command, step), (callback, command)]
    {
        assert_eq!(child.parent, parent.id, "{} is caused by {}", child.name, parent.name);
    }
    assert_eq!(callback.attributes["kring.request.id"], request_id, "the callback is of the same request");
    assert!(spans.iter().all(|span| span.service == "kring-controller" && span.error.is_none()), "{spans:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_its_caller_does_not_want_recorded_is_not() -> anyhow::Result<()> {
    let collector = Collector::start().await;
    let config = format!("[tracing]\notlp_endpoint = \"{}\"\nsample = 0.0\n", collector.url);
    let cluster = harness::cluster::Cluster::start_with(Setup { config, ..Setup::default() }).await?;
    let get = |trace: Trace| {
        let header = trace.header();
        let api = &cluster.api;
        async move { api.send(Call::new(Method::GET, "/v1/zones").header("traceparent", &header)).await }
    };
    let quiet = Trace { sampled: false, ..Trace::new() };
    let reply = get(quiet).await?;
    let answered = reply.headers.get("traceparent").and_then(|header| Trace::parse(header.to_str().ok()?));
    assert_eq!(answered.map(|trace| (trace.trace_id, trace.sampled)), Some((quiet.trace_id, false)));
    let wanted = Trace::new();
    get(wanted).await?;
    let of = |trace: Trace| format!("{:032x}", trace.trace_id);
    let all =
        collector.until(|spans| spans.iter().any(|span| span.trace_id == of(wanted)).then(|| spans.to_vec())).await;
    assert!(all.iter().all(|span| span.trace_id == of(wanted)), "nothing but what a caller wants: {all:#?}");
    Ok(())
}
