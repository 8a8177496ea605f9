//! Streams of events: begun, resumed, kept alive, ended.

use serde_json::json;
use shared::api::event::Event;
use shared::api::page::Page;
use shared::time::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use uuid::Uuid;

use super::*;
use crate::messages::event::{ListEvents, NextEvents, NextEventsReply};

fn event(cursor: i64) -> Event {
    Event {
        cursor,
        path: "/vm/state/changed".into(),
        resource_kind: "vm".into(),
        resource_id: Uuid::nil(),
        content: json!({"text": "line\nbreak"}),
        at: Timestamp(0),
    }
}

/// Knows events 1 to 5; then nothing happens any more.
async fn gateway() -> Gateway {
    Gateway::start(|services| {
        services.serve(|cx, m: NextEvents| async move {
            let after = m.after.unwrap_or(3);
            if after > 5 {
                return Err(Error::invalid("after", "is no cursor of this system"));
            }
            let events: Vec<Event> = (after + 1..=5).take(2).map(event).collect();
            if events.is_empty() {
                tokio::time::sleep_until(cx.deadline).await;
            }
            Ok(NextEventsReply { cursor: events.last().map_or(after, |e| e.cursor), events })
        });
        services.serve(
            |_, _: ListEvents| async move { Ok(Page { items: vec![event(1)], next_cursor: None, count: None }) },
        );
    })
    .await
}

/// Opens a stream and reads until `end` has been seen or the stream ends.
async fn read(gateway: &Gateway, head: &str, end: &str) -> String {
    let mut stream = gateway.connect(None).await;
    let request =
        format!("GET {head}\r\nHost: controller.kring\r\nAuthorization: Bearer {ADMIN}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).await.unwrap_or(0);
        text.extend_from_slice(&piece[..n]);
        let seen = String::from_utf8_lossy(&text).into_owned();
        if n == 0 || seen.contains(end) {
            return seen;
        }
    }
}

fn ids(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).collect()
}

#[tokio::test]
async fn a_stream_goes_on_behind_the_last_event_that_was_seen() {
    let gateway = gateway().await;
    for (head, seen) in [
        ("/v1/events?after=0 HTTP/1.1", vec!["1", "2", "3", "4", "5"]),
        ("/v1/events?after=3 HTTP/1.1", vec!["4", "5"]),
        ("/v1/events?after=0 HTTP/1.1\r\nLast-Event-ID: 4", vec!["5"]),
        ("/v1/events HTTP/1.1\r\nAccept: text/event-stream", vec!["4", "5"]),
    ] {
        let text = read(&gateway, head, "id: 5").await;
        assert!(text.contains("content-type: text/event-stream") && text.contains("\nretry: 2000\n"), "{text}");
        assert_eq!(ids(&text), seen, "{head}");
    }
    let text = read(&gateway, "/v1/events?after=4 HTTP/1.1", "Z\"}").await;
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    assert_eq!(serde_json::from_str::<Event>(data).unwrap(), event(5));
}

#[tokio::test]
async fn a_list_of_events_is_a_list() {
    let gateway = gateway().await;
    assert_eq!(gateway.get("/v1/events?limit=1").admin().send().await.json()["items"][0]["cursor"], 1);
    for bad in ["/v1/events?after=-1", "/v1/events?after=x", "/v1/events?after=1&limit=5", "/v1/events?after=6"] {
        assert_eq!(gateway.get(bad).admin().send().await.problem().0, 400, "{bad}");
    }
}

#[tokio::test]
async fn streams_end_when_the_controller_stops() {
    let gateway = gateway().await;
    let (text, ()) = tokio::join!(read(&gateway, "/v1/events?after=5 HTTP/1.1", "never"), async {
        // The stream is there when its place is taken.
        while gateway.server.api().streams.count() == 0 {
            tokio::task::yield_now().await;
        }
        gateway.server.shutdown().await;
    });
    assert!(text.contains(": the stream begins"), "{text}");
    assert_eq!(gateway.server.api().streams.count(), 0);
}

#[tokio::test]
async fn the_number_of_streams_is_bounded() {
    let gateway = Gateway::start_with(
        |config| config.max_streams = 1,
        |services| {
            services.serve(|cx, _: NextEvents| async move {
                tokio::time::sleep_until(cx.deadline).await;
                Ok(NextEventsReply { events: Vec::new(), cursor: 0 })
            });
        },
    )
    .await;
    let held = gateway.server.api().streams.open(None).unwrap();
    assert_eq!(gateway.get("/v1/events?after=0").admin().send().await.problem().0, 503);
    drop(held);
    assert!(read(&gateway, "/v1/events?after=0 HTTP/1.1", "begins").await.contains("200 OK"));
}
