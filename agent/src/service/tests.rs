//! The whole agent around a hypervisor in memory: what a controller sees of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use shared::id::{HostId, TaskId, VmId};
use shared::wire::event::{AgentEvent, AgentEvents};
use shared::wire::host::{HostFacts, InspectHost, Inventory, Join, Joined, Pong, Renew};
use shared::wire::vm::{PauseVm, PowerState, ResumeVm, VmReport};
use shared::wire::{HEADER_AGENT, TaskReport, host_dns_name};
use shared::{Code, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use super::harness::{Controller, World, client};
use crate::identity::join::{JoinOptions, join};
use crate::identity::tests::TestCa;
use crate::identity::{self, Store, renew, tls};

async fn code(answer: reqwest::Response) -> Code {
    answer.json::<Error>().await.unwrap().code
}

async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_quick_command_is_answered_at_once_and_never_run_twice() {
    let world = World::patient().await;
    let vm_id = world.fake.running(3);
    world.fake.gate.add_permits(1);
    let id = TaskId::new();
    for _ in 0..3 {
        let answer = world.send(id, 7, &PauseVm { vm_id }).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let report: VmReport = answer.json().await.unwrap();
        assert_eq!((report.power, report.generation), (PowerState::Paused, 7));
    }
    assert_eq!(world.fake.suspends.load(Ordering::SeqCst), 1);
    assert_eq!(code(world.send(id, 7, &PauseVm { vm_id: VmId::new() }).await).await, Code::Conflict);
    assert_eq!(world.controller.count(|p| p.contains("callbacks")), 0, "an answered command has no callback");
    let missing = world.send(TaskId::new(), 7, &PauseVm { vm_id: VmId::new() }).await;
    assert_eq!((missing.status(), code(missing).await), (StatusCode::NOT_FOUND, Code::NotFound));
}

#[tokio::test]
async fn a_slow_command_is_answered_later_and_its_callback_tried_again() {
    let world = World::new().await;
    let vm_id = world.fake.running(0);
    let tries = std::sync::atomic::AtomicUsize::new(0);
    world.controller.on(move |request| {
        let mut answer = Response::new(Bytes::new());
        let first = request.uri().path().contains("callbacks") && tries.fetch_add(1, Ordering::SeqCst) == 0;
        if first {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        answer
    });
    let id = TaskId::new();
    assert_eq!(world.send(id, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    assert_eq!(world.send(id, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED, "still the same task");
    let look = world.client.get(world.url(&format!("/v1/tasks/{id}"))).send().await.unwrap();
    assert!(matches!(look.json().await.unwrap(), TaskReport::Running { .. }));
    world.fake.gate.add_permits(1);
    assert!(matches!(world.controller.outcome(id).await, TaskReport::Done { .. }));
    world.controller.told(|_, _| (world.controller.count(|p| p.contains("callbacks")) >= 2).then_some(())).await;
    assert_eq!(world.send(id, 1, &PauseVm { vm_id }).await.status(), StatusCode::OK, "found again");
    let unknown = world.client.get(world.url(&format!("/v1/tasks/{}", TaskId::new()))).send().await.unwrap();
    assert_eq!(code(unknown).await, Code::NotFound);
}

#[tokio::test]
async fn an_older_generation_is_refused() {
    let world = World::patient().await;
    world.fake.gate.add_permits(9);
    let recorded = world.fake.running(8);
    let refused = world.send(TaskId::new(), 7, &PauseVm { vm_id: recorded }).await;
    assert_eq!(code(refused).await, Code::StaleGeneration, "what libvirt has recorded counts");
    let seen = world.fake.running(0);
    assert_eq!(world.send(TaskId::new(), 5, &PauseVm { vm_id: seen }).await.status(), StatusCode::OK);
    assert_eq!(code(world.send(TaskId::new(), 4, &PauseVm { vm_id: seen }).await).await, Code::StaleGeneration);
    assert_eq!(world.send(TaskId::new(), 5, &PauseVm { vm_id: seen }).await.status(), StatusCode::OK);
    assert_eq!(world.fake.report(recorded).power, PowerState::Running);
}

#[tokio::test]
async fn a_command_that_was_meant_for_the_agent_before_its_restart_is_refused() {
    let world = World::patient().await;
    world.fake.gate.add_permits(9);
    let (vm_id, id) = (world.fake.running(0), TaskId::new());
    let send = |agent_id: Uuid| {
        let command = world.command(&world.controller.url, id, 1, Duration::from_secs(60), &PauseVm { vm_id });
        command.header(HEADER_AGENT, agent_id.to_string()).send()
    };
    let refused = send(Uuid::new_v4()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);
    let own = refused.headers()[HEADER_AGENT].to_str().unwrap().parse().unwrap();
    assert_eq!((own, code(refused).await), (world.running.app.agent_id, Code::Unavailable));
    assert_eq!(world.fake.report(vm_id).power, PowerState::Running);
    assert_eq!(send(own).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn commands_on_one_resource_run_in_order_within_a_bound() {
    let world = World::with(|c| c.agent.max_queue = 2).await;
    let (vm_id, other) = (world.fake.running(0), world.fake.running(0));
    let (first, second) = (TaskId::new(), TaskId::new());
    assert_eq!(world.send(first, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    assert_eq!(world.send(second, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    until(|| world.fake.suspends.load(Ordering::SeqCst) == 1).await;
    assert_eq!(code(world.send(TaskId::new(), 1, &PauseVm { vm_id }).await).await, Code::Unavailable);
    assert_eq!(world.send(TaskId::new(), 1, &PauseVm { vm_id: other }).await.status(), StatusCode::ACCEPTED);
    until(|| world.fake.suspends.load(Ordering::SeqCst) == 2).await;
    assert_eq!(world.fake.report(other).power, PowerState::Running, "both wait in libvirt, the second one before it");
    world.fake.gate.add_permits(2);
    for id in [first, second] {
        assert!(matches!(world.controller.outcome(id).await, TaskReport::Done { .. }));
    }
}

#[tokio::test]
async fn a_cancelled_and_a_late_task_fail_and_say_so() {
    let world = World::new().await;
    let vm_id = world.fake.running(0);
    let (running, waiting) = (TaskId::new(), TaskId::new());
    assert_eq!(world.send(running, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    assert_eq!(world.send(waiting, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    for id in [waiting, running] {
        let answer = world.client.delete(world.url(&format!("/v1/tasks/{id}"))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let TaskReport::Failed { error, .. } = world.controller.outcome(id).await else { panic!("{id}") };
        assert_eq!(error.code, Code::Cancelled);
    }
    let late = TaskId::new();
    let answer = world.send_for(late, 1, Duration::from_secs(2), &PauseVm { vm_id }).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let TaskReport::Failed { error, .. } = world.controller.outcome(late).await else { panic!("late") };
    assert_eq!(error.code, Code::DeadlineExceeded);
    let past = world.send_for(TaskId::new(), 1, Duration::ZERO, &PauseVm { vm_id }).await;
    assert_eq!(code(past).await, Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_panic_is_one_failed_task() {
    let world = World::patient().await;
    let vm_id = world.fake.running(0);
    world.fake.gate.add_permits(1);
    assert_eq!(world.send(TaskId::new(), 1, &PauseVm { vm_id }).await.status(), StatusCode::OK);
    let failed = world.send(TaskId::new(), 1, &ResumeVm { vm_id }).await;
    assert_eq!(code(failed).await, Code::Internal);
    assert_eq!(world.send(TaskId::new(), 1, &PauseVm { vm_id }).await.status(), StatusCode::OK, "the queue goes on");
}

#[tokio::test]
async fn only_a_controller_gets_in() {
    let world = World::new().await;
    let address = world.running.address;
    let another = client(&world.ca, Some(world.ca.chain(&host_dns_name(HostId::new()))), world.host_id, address);
    let foreign = client(&world.ca, Some(TestCa::new().controller_chain()), world.host_id, address);
    let nobody = client(&world.ca, None, world.host_id, address);
    for (who, client) in [("another host", another), ("another authority", foreign), ("nobody", nobody)] {
        assert!(client.get(world.url("/v1/ping")).send().await.is_err(), "{who} got in");
    }
    assert!(world.client.get(world.url("/v1/ping")).send().await.unwrap().status().is_success());
}

#[tokio::test]
async fn a_ping_answers_while_libvirt_does_not() {
    let world = World::new().await;
    world.fake.running(0);
    let ping = || async { world.client.get(world.url("/v1/ping")).send().await.unwrap().json::<Pong>().await.unwrap() };
    let pong = ping().await;
    assert_eq!((pong.host_id, pong.agent_id), (world.host_id, world.running.app.agent_id));
    assert!(pong.digest.is_some() && pong.libvirt_error.is_none());
    *world.fake.broken.lock().unwrap() = Some("no answer".into());
    let pong = ping().await;
    assert_eq!((pong.digest, pong.libvirt_error.as_deref()), (None, Some("no answer")));
    let inventory = world.client.get(world.url("/v1/inventory")).send().await.unwrap();
    assert_eq!(code(inventory).await, Code::Unavailable, "an error, not a list that is too short");
}

#[tokio::test]
async fn an_inventory_has_everything_and_is_only_for_this_host() {
    let world = World::patient().await;
    let vm_id = world.fake.running(4);
    let inspect = |host_id| InspectHost { host_id, storages: Vec::new() };
    let answer = world.send(TaskId::new(), 1, &inspect(world.host_id)).await;
    let inventory: Inventory = answer.json().await.unwrap();
    assert_eq!((inventory.vms[0].vm_id, inventory.foreign_domains.len()), (vm_id, 1));
    assert_eq!(inventory.facts.libvirt_version, "9.0.0");
    assert!(inventory.facts.cpus > 0 && inventory.facts.memory.0 > 0);
    assert_eq!(code(world.send(TaskId::new(), 1, &inspect(HostId::new())).await).await, Code::InvalidRequest);
}

#[tokio::test]
async fn what_is_not_of_the_protocol_is_refused() {
    let world = World::patient().await;
    let post = |path: &str| world.client.post(world.url(path)).body("{}");
    assert_eq!(code(post("/v1/ping").send().await.unwrap()).await, Code::MethodNotAllowed);
    assert_eq!(code(post("/v2/ping").send().await.unwrap()).await, Code::NotFound);
    assert_eq!(code(post("/v1/commands/vm/pause").send().await.unwrap()).await, Code::InvalidRequest);
    let large = world.client.post(world.url("/v1/commands/vm/pause")).body(vec![b' '; 3 << 20]);
    if let Ok(answer) = large.send().await {
        assert_eq!(code(answer).await, Code::TooLarge);
    }
    let plain = world.client.get(world.url(&format!("/v1/vms/{}/console/vnc", VmId::new()))).send().await.unwrap();
    assert_eq!(code(plain).await, Code::InvalidRequest);
}

#[tokio::test]
async fn events_reach_the_controller_in_order() {
    let world = World::new().await;
    let vm_id = VmId::new();
    let events = |body: &[u8]| serde_json::from_slice::<AgentEvents>(body).map(|b| b.events).unwrap_or_default();
    world.controller.told(|_, body| events(body).contains(&AgentEvent::AgentStarted).then_some(())).await;
    until(|| world.fake.events.receiver_count() > 0).await;
    world.fake.events.send(AgentEvent::VmGone { vm_id }).unwrap();
    world.controller.told(|_, body| events(body).contains(&AgentEvent::VmGone { vm_id }).then_some(())).await;
}

#[tokio::test]
async fn a_console_is_a_stream_of_bytes() {
    let world = World::new().await;
    let vm_id = world.fake.running(0);
    let screen = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.fake.vnc.store(screen.local_addr().unwrap().port(), Ordering::SeqCst);
    let echo = async {
        let (mut stream, _) = screen.accept().await.unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    };
    let look = async {
        let answer = world
            .client
            .get(world.url(&format!("/v1/vms/{vm_id}/console/vnc")))
            .header("connection", "upgrade")
            .header("upgrade", "kring-stream")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut stream = answer.upgrade().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
    };
    tokio::join!(echo, look);
}

#[tokio::test]
async fn a_stop_ends_running_tasks_and_everything_else() {
    let world = World::new().await;
    let vm_id = world.fake.running(0);
    let id = TaskId::new();
    assert_eq!(world.send(id, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    let (app, data_dir) = (world.running.app.clone(), world.dir.path().join("data"));
    assert!(matches!(super::claim(&data_dir), Err(super::Error::Running(_))));
    world.running.stop().await;
    assert!(app.tracker.is_empty());
    let entry = app.tasks.get(id).unwrap().report();
    assert!(matches!(entry, TaskReport::Failed { error, .. } if error.code == Code::Unavailable));
}

/// Signs a certificate request as a controller would.
fn certify(ca: &TestCa, host_id: HostId, csr: &str) -> Joined {
    let mut request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
    let name = rcgen::string::Ia5String::try_from(host_dns_name(host_id)).unwrap();
    request.params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
    let certificate = request.signed_by(&ca.issuer).unwrap().pem();
    Joined { host_id, certificate, ca: ca.pem.clone(), controllers: Vec::new() }
}

fn answer_json(value: &impl serde::Serialize) -> Response<Bytes> {
    Response::new(Bytes::from(serde_json::to_vec(value).unwrap()))
}

#[tokio::test]
async fn a_host_joins_the_controller_of_its_token_and_no_other() {
    let (ca, host_id) = (std::sync::Arc::new(TestCa::new()), HostId::new());
    let controller = Controller::start(&ca).await;
    let authority = std::sync::Arc::clone(&ca);
    controller.on(move |request| {
        let join: Join = serde_json::from_slice(request.body()).unwrap();
        answer_json(&certify(&authority, host_id, &join.csr))
    });
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    let token = |ca: &TestCa| {
        let hex: String = tls::fingerprint(&ca.der).iter().map(|b| format!("{b:02x}")).collect();
        format!("one-time.{hex}")
    };
    let options = |token| JoinOptions {
        controllers: vec![controller.url.clone()],
        token,
        name: "h1".parse().unwrap(),
        address: None,
        port: 7443,
        timeout: Duration::from_secs(10),
    };
    let stranger = join(&store, options(token(&TestCa::new())), HostFacts::default()).await;
    assert!(matches!(stranger, Err(identity::Error::Unreachable(_))));
    assert_eq!(controller.count(|_| true), 0, "the secret is not sent to a stranger");
    assert_eq!(join(&store, options(token(&ca)), HostFacts::default()).await.unwrap(), host_id);
    assert_eq!(store.load(Duration::from_secs(1)).unwrap().host_id, host_id);
    controller.on(|_| {
        let mut answer = answer_json(&Error::new(Code::Unauthenticated, "the token was used already"));
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
        answer
    });
    let again = join(&store, options(token(&ca)), HostFacts::default()).await.unwrap_err();
    assert!(again.to_string().contains("used already"), "{again}");
    let body = controller.told(|_, body| serde_json::from_slice::<Join>(body).ok().filter(|j| j.host_id.is_some()));
    assert_eq!(body.await.host_id, Some(host_id), "a host that comes back says who it was");
    let other = join(&store, options(token(&TestCa::new())), HostFacts::default()).await.unwrap_err();
    assert!(matches!(other, identity::Error::OtherCloud) && other.to_string().contains("kring-agent leave"), "{other}");
    assert_eq!(store.load(Duration::from_secs(1)).unwrap().host_id, host_id, "it is of the cloud that it has joined");
    store.remove().unwrap();
    let free = join(&store, options(token(&TestCa::new())), HostFacts::default()).await;
    assert!(matches!(free, Err(identity::Error::Unreachable(_))), "one that has left is free");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let world = World::new().await;
    let app = &world.running.app;
    let (host_id, before) = (world.host_id, app.identity.load_full());
    let wrong = certify(&world.ca, HostId::new(), &rcgen_request());
    world.controller.on(move |_| answer_json(&wrong));
    let store = Store::new(&app.config.agent.data_dir);
    assert!(renew::renew(app, &store).await.is_err(), "a certificate for another host is not taken");
    let ca = std::sync::Arc::new(world.ca.issuer_copy());
    world.controller.on(move |request| match serde_json::from_slice::<Renew>(request.body()) {
        Ok(renew) => answer_json(&certify(&ca, host_id, &renew.csr)),
        Err(_) => Response::default(),
    });
    renew::renew(app, &store).await.unwrap();
    assert!(!std::sync::Arc::ptr_eq(&before, &app.identity.load_full()));
    assert!(world.client.get(world.url("/v1/ping")).send().await.unwrap().status().is_success());
}

fn rcgen_request() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap().pem().unwrap()
}

mod failover;
mod traces;
