//! A collector that keeps the spans that it is sent, for tests.

#![expect(clippy::unwrap_used, reason = "a collector that cannot work fails the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A span as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The program that made it.
    pub service: String,
    /// Which of those that run it.
    pub instance: String,
    /// Its name.
    pub name: String,
    /// Its kind by OTLP's number: 1 internal, 2 server, 3 client.
    pub kind: i64,
    /// The trace, hexadecimal.
    pub trace_id: String,
    /// Its id, hexadecimal.
    pub id: String,
    /// The span that caused it; empty when there is none.
    pub parent: String,
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// The collector; it ends when it is dropped.
pub struct Collector {
    /// The endpoint to configure.
    pub url: String,
    seen: watch::Sender<Vec<Seen>>,
    _serve: JoinSet<()>,
}

impl Collector {
    /// A collector on a free port of the loopback.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = watch::Sender::new(Vec::new());
        let mut serve = JoinSet::new();
        let sink = seen.clone();
        serve.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sink = sink.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let sink = sink.clone();
                        async move {
                            let right = request.uri().path() == "/v1/traces";
                            let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                            let spans = serde_json::from_slice(&body).map(|json| read(&json)).unwrap_or_default();
                            if right {
                                sink.send_modify(|all| all.extend(spans));
                            }
                            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                        }
                    });
                    // A client that breaks off is its own business.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { url, seen, _serve: serve }
    }

    /// Waits until `found` finds what it looks for among all spans so far.
    pub async fn until<T>(&self, found: impl Fn(&[Seen]) -> Option<T>) -> T {
        let mut seen = self.seen.subscribe();
        loop {
            if let Some(found) = found(&seen.borrow_and_update()) {
                return found;
            }
            seen.changed().await.unwrap();
        }
    }
}

fn read(body: &Value) -> Vec<Seen> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let attributes = |value: &Value| {
        let pair = |one: &Value| {
            let value = &one["value"];
            (text(&one["key"]), value["stringValue"].as_str().or(value["intValue"].as_str()).unwrap_or("").to_string())
        };
        list(value).iter().map(pair).collect::<BTreeMap<_, _>>()
    };
    let mut seen = Vec::new();
    for of in list(&body["resourceSpans"]) {
        let mut resource = attributes(&of["resource"]["attributes"]);
        let mut of_resource = |key: &str| resource.remove(key).unwrap_or_default();
        let (service, instance) = (of_resource("service.name"), of_resource("service.instance.id"));
        for span in list(&of["scopeSpans"]).iter().flat_map(|scope| list(&scope["spans"])) {
            let number = |key: &str| span[key].as_str().and_then(|n| n.parse::<u128>().ok()).unwrap_or_default();
            assert!(number("startTimeUnixNano") <= number("endTimeUnixNano"), "{span}");
            seen.push(Seen {
                service: service.clone(),
                instance: instance.clone(),
                name: text(&span["name"]),
                kind: span["kind"].as_i64().unwrap_or_default(),
                trace_id: text(&span["traceId"]),
                id: text(&span["spanId"]),
                parent: text(&span["parentSpanId"]),
                attributes: attributes(&span["attributes"]),
                error: span["status"]["message"].as_str().map(str::to_string),
            });
        }
    }
    seen
}
