//! Trying again: the same request under the same key, a bounded number of times.

use std::collections::HashSet;

use serde_json::json;

use super::fake::{Answer, Fake, id, job};

fn keys(fake: &Fake) -> HashSet<String> {
    fake.asked().iter().filter(|a| a.method != "GET").map(|a| a.header("idempotency-key").to_string()).collect()
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_key() {
    let fake = Fake::start(|asked, count| match (asked.method.as_str(), count) {
        ("POST", 0 | 1) => Answer::Drop,
        ("POST", _) => Answer::Json(200, job(50, "succeeded", None, 100)),
        _ => Answer::Json(200, json!({"id": id(1), "name": "web"})),
    })
    .await;
    let run = fake.run(&["vm", "pause", &id(1)]).await.ended(0);
    assert!(run.stdout.contains("paused"), "{}", run.stdout);
    let posts = fake.asked().iter().filter(|a| a.method == "POST").count();
    assert_eq!((posts, keys(&fake).len()), (3, 1), "{:?}", fake.lines());
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_says_so() {
    let fake = Fake::start(|asked, count| match (asked.method.as_str(), count) {
        ("POST", 0) => Answer::JsonWith(503, json!({}), ("Retry-After", "0")),
        ("POST", 1) => Answer::problem(shared::Code::RateLimited, "too many"),
        ("POST", _) => Answer::Json(201, json!({"id": id(1), "name": "north"})),
        _ => Answer::page(Vec::new()),
    })
    .await;
    fake.run(&["zone", "create", "north"]).await.ended(0);
    assert_eq!((fake.asked().len(), keys(&fake).len()), (3, 1));
    let ids: HashSet<_> = fake.asked().iter().map(|a| a.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "the chosen id stays the same");
}

#[tokio::test]
async fn trying_again_ends() {
    let fake = Fake::start(|_, _| Answer::problem(shared::Code::Unavailable, "stopping")).await;
    let run = fake.run(&["zone", "create", "north"]).await.ended(5);
    assert!(run.stderr.contains("stopping") && run.stderr.contains("try again in a moment"), "{}", run.stderr);
    assert_eq!((fake.asked().len(), keys(&fake).len()), (5, 1));
}

#[tokio::test]
async fn two_changes_have_two_keys() {
    let fake = Fake::start(|_, _| Answer::Json(201, json!({"id": id(1), "name": "z"}))).await;
    fake.run(&["zone", "create", "a"]).await.ended(0);
    fake.run(&["zone", "create", "b"]).await.ended(0);
    assert_eq!(keys(&fake).len(), 2);
}

#[tokio::test]
async fn the_next_address_is_taken_when_one_does_not_answer() {
    let fake = Fake::start(|_, _| Answer::page(vec![json!({"id": id(1), "name": "north"})])).await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = fake.command(&["zone", "list", "-o", "name"]);
    command.env("KRING_URL", format!("http://{dead},{}", fake.url));
    assert_eq!(super::cmd::finish(command).await.ended(0).stdout, "north\n");
}

#[tokio::test]
async fn a_controller_that_restarts_does_not_end_the_waiting() {
    let fake = Fake::start(|asked, count| match asked.line().as_str() {
        line if line.ends_with("/start") => super::fake::accepted(50),
        line if line.contains("/v1/jobs/") && count < 8 => Answer::Drop,
        line if line.contains("/v1/jobs/") => Answer::Json(200, job(50, "succeeded", None, 100)),
        _ => Answer::Json(200, json!({"id": id(1), "name": "web"})),
    })
    .await;
    let run = fake.run(&["vm", "start", &id(1)]).await.ended(0);
    assert!(run.stderr.contains("the job goes on, trying again"), "{}", run.stderr);
}
