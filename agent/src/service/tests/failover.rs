//! Several controllers: what is told to one that is dead reaches another, and a command that comes
//! again from the next owner is reported to it.

use std::sync::Arc;

use shared::id::ImageId;
use shared::wire::HEADER_GENERATION;
use shared::wire::controllers::{HEADER_CONTROLLERS, clean, write};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// An address at which nobody listens.
fn nobody() -> String {
    format!("https://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

fn answer_status(code: Code) -> Response<Bytes> {
    let mut answer = answer_json(&Error::new(code, "no"));
    *answer.status_mut() = StatusCode::from_u16(code.status()).unwrap();
    answer
}

#[tokio::test]
async fn events_callbacks_and_renewal_reach_another_controller_when_the_first_is_dead() {
    let dead = nobody();
    let world = World::with(|c| c.controller.urls = vec![dead.clone()]).await;
    world.controller.told(|path, _| (path == "/agent/v1/events").then_some(())).await;
    let vm_id = world.fake.running(0);
    let id = TaskId::new();
    let accepted = world.send_from(&dead, id, 1, MINUTE, &PauseVm { vm_id }).await;
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    world.fake.gate.add_permits(1);
    assert!(matches!(world.controller.outcome(id).await, TaskReport::Done { .. }));
    let (ca, host_id) = (Arc::new(world.ca.issuer_copy()), world.host_id);
    world.controller.on(move |request| match serde_json::from_slice::<Renew>(request.body()) {
        Ok(renew) => answer_json(&certify(&ca, host_id, &renew.csr)),
        Err(_) => Response::default(),
    });
    let before = world.running.app.identity.load_full();
    renew::renew(&world.running.app, &Store::new(&world.running.app.config.agent.data_dir)).await.unwrap();
    assert!(!Arc::ptr_eq(&before, &world.running.app.identity.load_full()));
}

#[tokio::test]
async fn controllers_that_are_told_of_are_used_and_remembered() {
    let world = World::new().await;
    let other = Controller::start(&world.ca).await;
    let list = clean([world.controller.url.as_str(), other.url.as_str()]);
    let ping = world.client.get(world.url("/v1/ping")).header(HEADER_CONTROLLERS, write(&list));
    assert!(ping.send().await.unwrap().status().is_success());
    let vm_id = world.fake.running(0);
    let id = TaskId::new();
    assert_eq!(world.send(id, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    world.controller.die();
    world.fake.gate.add_permits(1);
    assert!(matches!(other.outcome(id).await, TaskReport::Done { .. }));
    let store = Store::new(&world.running.app.config.agent.data_dir);
    until(|| store.told_controllers().unwrap() == list).await;
    let nonsense = world.client.get(world.url("/v1/ping")).header(HEADER_CONTROLLERS, "ftp://x, ,http://y");
    assert!(nonsense.send().await.unwrap().status().is_success());
    assert_eq!(store.told_controllers().unwrap(), list, "a list without addresses changes nothing");
}

#[tokio::test]
async fn a_command_that_the_next_owner_repeats_is_reported_to_it() {
    let world = World::new().await;
    let next = Controller::start(&world.ca).await;
    let vm_id = world.fake.running(0);
    let id = TaskId::new();
    assert_eq!(world.send(id, 1, &PauseVm { vm_id }).await.status(), StatusCode::ACCEPTED);
    let again = world.send_from(&next.url, id, 2, MINUTE, &PauseVm { vm_id }).await;
    assert_eq!(again.status(), StatusCode::ACCEPTED, "it runs already");
    let late = world.send(id, 1, &PauseVm { vm_id }).await;
    assert_eq!(code(late).await, Code::StaleGeneration, "the owner before has nothing to say any more");
    let cancel = world.client.delete(world.url(&format!("/v1/tasks/{id}"))).header(HEADER_GENERATION, "1");
    assert_eq!(code(cancel.send().await.unwrap()).await, Code::StaleGeneration, "and cannot end it for the next one");
    world.fake.gate.add_permits(1);
    assert!(matches!(next.outcome(id).await, TaskReport::Done { .. }));
    assert_eq!(world.fake.report(vm_id).generation, 2, "it was done for the new owner");
    assert_eq!(world.controller.count(|path| path.contains("callbacks")), 0);
    let answered = world.send_from(&next.url, id, 2, MINUTE, &PauseVm { vm_id }).await;
    assert_eq!((answered.status(), world.fake.suspends.load(Ordering::SeqCst)), (StatusCode::OK, 1));
}

#[tokio::test]
async fn an_outcome_on_its_way_to_a_dead_owner_goes_to_the_next_one() {
    let world = World::new().await;
    let (dead, vm_id, id) = (nobody(), world.fake.running(0), TaskId::new());
    // The controllers that are left do not know who waits yet.
    world.controller.on(|request| match request.uri().path().contains("callbacks") {
        true => answer_status(Code::Unavailable),
        false => Response::default(),
    });
    let accepted = world.send_from(&dead, id, 1, MINUTE, &PauseVm { vm_id }).await;
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    world.fake.gate.add_permits(1);
    world.controller.told(|path, _| path.contains("callbacks").then_some(())).await;
    let next = Controller::start(&world.ca).await;
    let again = world.send_from(&next.url, id, 2, MINUTE, &PauseVm { vm_id }).await;
    assert_eq!(again.status(), StatusCode::OK, "answered with the outcome");
    assert!(matches!(next.outcome(id).await, TaskReport::Done { .. }), "and told as well");
}

#[tokio::test]
async fn the_content_of_an_image_is_fetched_from_the_controller_that_has_it() {
    let dead = nobody();
    let world = World::with(|c| c.controller.urls = vec![dead]).await;
    world.controller.on(|_| answer_status(Code::NotFound));
    let client = &world.running.app.controller;
    let error = client.image_content(ImageId::new(), None).await.unwrap_err();
    assert!(error.to_string().contains("could not be reached"), "the one that is away may have it: {error}");
    let other = Controller::start(&world.ca).await;
    other.on(|_| Response::new(Bytes::from_static(b"content")));
    client.tell(clean([other.url.as_str()]));
    let content = client.image_content(ImageId::new(), None).await.unwrap().bytes().await.unwrap();
    assert_eq!(content.as_ref(), b"content");
}
