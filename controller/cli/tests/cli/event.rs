//! Watching events: nothing is missed and nothing comes twice when the connection is cut.

use serde_json::{Value, json};

use super::fake::{Answer, Fake, ago, id};

fn event(cursor: i64, path: &str) -> Value {
    json!({
        "cursor": cursor, "path": path, "resource_kind": "vm", "resource_id": id(1), "at": ago(1),
        "content": {"from": "stopped", "to": "running"},
    })
}

#[tokio::test]
async fn a_cut_stream_goes_on_after_the_last_event() {
    let fake = Fake::start(|asked, count| match (asked.param("after"), count) {
        ("5", 0) => Answer::Events(vec![event(6, "/vm/created"), event(7, "/vm/state/changed")]),
        ("7", 1) => Answer::Drop,
        ("7", _) => Answer::Events(vec![event(7, "/vm/state/changed"), event(8, "/vm/deleted")]),
        other => panic!("{other:?}"),
    })
    .await;
    let run = fake.run(&["event", "watch", "--after", "5", "--limit", "3", "-o", "name"]).await.ended(0);
    assert_eq!(run.stdout, "/vm/created\n/vm/state/changed\n/vm/deleted\n");
    assert!(run.stderr.contains("The connection was lost; going on after 7."), "{}", run.stderr);
    assert_eq!(fake.asked()[0].header("accept"), "text/event-stream");
}

#[tokio::test]
async fn events_are_chosen_and_written_one_on_a_line() {
    let fake = Fake::start(|asked, _| match asked.header("accept") {
        "text/event-stream" => Answer::Events(vec![event(1, "/host/connected"), event(2, "/vm/state/changed")]),
        _ => Answer::page(vec![event(0, "/vm/created")]),
    })
    .await;
    let args = ["event", "watch", "--path", "/vm/", "--resource", &id(1), "--limit", "1", "-o", "json"];
    let run = fake.run(&args).await.ended(0);
    assert_eq!(run.stdout.lines().count(), 1);
    assert_eq!(run.json()["cursor"], 2);
    assert_eq!(fake.asked()[1].param("after"), "0", "a watch begins after the newest event");
    let run = fake.run(&["event", "watch", "--path", "/vm/", "--limit", "1"]).await.ended(0);
    assert!(
        run.stdout.contains("/vm/state/changed") && run.stdout.contains("from=stopped to=running"),
        "{}",
        run.stdout
    );
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let fake = Fake::start(|_, _| Answer::problem(shared::Code::Unauthenticated, "the token is not known")).await;
    fake.run(&["event", "watch"]).await.ended(5);
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test]
async fn past_events_are_listed_the_newest_first() {
    let fake = Fake::start(|_, _| Answer::page(vec![event(9, "/vm/deleted")])).await;
    let run = fake.run(&["event", "list"]).await.ended(0);
    assert!(run.stdout.contains("/vm/deleted"), "{}", run.stdout);
    assert_eq!(fake.asked()[0].param("sort"), "-cursor");
}

#[tokio::test]
async fn a_stream_goes_on_at_another_controller_after_the_last_event() {
    let other = Fake::start(|asked, _| match asked.param("after") {
        "7" => Answer::Events(vec![event(8, "/vm/deleted")]),
        other => panic!("{other:?}"),
    })
    .await;
    let dying = Fake::start(|_, count| match count {
        0 => Answer::Events(vec![event(6, "/vm/created"), event(7, "/vm/state/changed")]),
        1 => Answer::Text(503, "stopping".into()),
        _ => Answer::Drop,
    })
    .await;
    let mut command = other.command(&["event", "watch", "--after", "5", "--limit", "3", "-o", "name"]);
    command.env("KRING_URL", format!("{},{}", dying.url, other.url));
    let run = super::cmd::finish(command).await.ended(0);
    assert_eq!(run.stdout, "/vm/created\n/vm/state/changed\n/vm/deleted\n");
    assert!(run.stderr.contains("does not answer; trying"), "{}", run.stderr);
}
