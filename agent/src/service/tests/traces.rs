//! A task is a part of the trace of its command, down to the programs that it runs and its callback.

use std::sync::Arc;

use shared::wire::{HEADER_REQUEST_ID, HEADER_TRACEPARENT};
use tokio_util::sync::CancellationToken;
use trace::Trace;
use trace::testing::{Collector, Seen};

use super::*;
use crate::cmd::Cmd;

#[tokio::test]
async fn a_task_its_programs_and_its_callback_are_of_the_commands_trace() {
    let collector = Collector::start().await;
    let world = World::with(|c| c.tracing.otlp_endpoint = collector.url.clone()).await;
    let told: Arc<std::sync::Mutex<Vec<(String, String)>>> = Arc::default();
    let keep = Arc::clone(&told);
    world.controller.on(move |request| {
        let header = |name: &str| request.headers().get(name).map_or("", |h| h.to_str().unwrap()).to_string();
        if request.uri().path().contains("callbacks") {
            keep.lock().unwrap().push((header(HEADER_TRACEPARENT), header(HEADER_REQUEST_ID)));
        }
        Response::default()
    });
    let (vm_id, id, command) = (world.fake.running(0), TaskId::new(), Trace::new());
    let request = world.command(&world.controller.url, id, 1, Duration::from_secs(60), &PauseVm { vm_id });
    let request = request.header(HEADER_TRACEPARENT, command.header()).header(HEADER_REQUEST_ID, "req-7");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::ACCEPTED);
    world.fake.gate.add_permits(1);
    assert!(matches!(world.controller.outcome(id).await, TaskReport::Done { .. }));
    let trace_id = format!("{:032x}", command.trace_id);
    let named = |spans: &[Seen], name: &str| spans.iter().find(|s| s.name == name && s.trace_id == trace_id).cloned();
    let (task, callback) = collector.until(|spans| Some((named(spans, "vm/pause")?, named(spans, "callback")?))).await;
    assert_eq!((task.service.as_str(), task.kind), ("kring-agent", 2));
    assert_eq!(task.parent, format!("{:016x}", command.span_id));
    assert_eq!(callback.parent, format!("{:016x}", command.span_id), "sent when the task has ended");
    let posted = told.lock().unwrap().last().cloned().unwrap();
    let posted_trace = Trace::parse(&posted.0).unwrap();
    assert_eq!((format!("{:016x}", posted_trace.span_id), posted.1.as_str()), (callback.id, "req-7"));

    let run = async { Cmd::new("true").run(&CancellationToken::new()).await };
    trace::within("req-8".into(), command, run).await.unwrap();
    let program = collector.until(|spans| named(spans, "run true")).await;
    assert_eq!(program.parent, format!("{:016x}", command.span_id));
}
