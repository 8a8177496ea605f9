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

/// A program that talks to these controllers in this order.
fn command_for(home: &Fake, urls: &[&str], args: &[&str]) -> tokio::process::Command {
    let mut command = home.command(args);
    command.env("KRING_URL", urls.join(" , "));
    command
}

/// An address at which nobody listens.
fn nobody() -> String {
    format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

#[tokio::test]
async fn a_change_goes_on_at_the_next_controller_under_the_same_key() {
    let gone = |_: &super::fake::Asked, _| Answer::Text(502, "bad gateway".into());
    let (proxy, busy) = (Fake::start(gone).await, Fake::start(|_, _| Answer::Drop).await);
    let good = Fake::start(|_, _| Answer::Json(201, json!({"id": id(1), "name": "north"}))).await;
    let dead = nobody();
    let urls = [dead.as_str(), &proxy.url, &busy.url, &good.url];
    let run = super::cmd::finish(command_for(&good, &urls, &["zone", "create", "north"])).await.ended(0);
    assert!(run.stdout.contains("created"), "{}", run.stdout);
    for (away, next) in [(dead.as_str(), &proxy.url), (&proxy.url, &busy.url), (&busy.url, &good.url)] {
        assert!(run.stderr.contains(&format!("{away}/ does not answer; trying {next}/")), "{}", run.stderr);
    }
    let all: HashSet<_> = [&proxy, &busy, &good].into_iter().flat_map(keys).collect();
    assert_eq!(all.len(), 1, "one key at all controllers");
}

#[tokio::test]
async fn an_error_names_all_addresses_that_were_tried() {
    let home = Fake::start(|_, _| Answer::Drop).await;
    let (one, two) = (nobody(), nobody());
    let run = super::cmd::finish(command_for(&home, &[&one, &two], &["zone", "list"])).await.ended(5);
    let first = run.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default().to_string();
    assert!(first.contains(&one) && first.contains(&two), "{}", run.stderr);
    for url in [&one, &two] {
        assert!(run.stderr.contains(&format!("because: {url}/: ")), "{}", run.stderr);
        assert_eq!(run.stderr.matches(&format!("{url}/ does not answer")).count(), 1, "told once: {}", run.stderr);
    }
}

#[tokio::test]
async fn waiting_for_a_job_goes_on_at_another_controller() {
    let other = Fake::start(|asked, _| match asked.line().as_str() {
        line if line.contains("/v1/jobs/") => Answer::Json(200, job(50, "succeeded", None, 100)),
        _ => Answer::Json(200, json!({"id": id(1), "name": "web"})),
    })
    .await;
    let dying = Fake::start(|asked, _| match asked.line().as_str() {
        line if line.ends_with("/start") => super::fake::accepted(50),
        _ => Answer::Drop,
    })
    .await;
    let command = command_for(&other, &[&dying.url, &other.url], &["vm", "start", &id(1)]);
    let run = super::cmd::finish(command).await.ended(0);
    assert!(run.stdout.contains("started"), "{}", run.stdout);
    assert!(run.stderr.contains("does not answer; trying"), "{}", run.stderr);
    assert_eq!(dying.asked().iter().filter(|a| a.method == "POST").count(), 1);
}
