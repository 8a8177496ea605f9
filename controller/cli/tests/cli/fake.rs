//! A small server that plays the controller: it answers by a closure and remembers what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::cmd::{self, Run};

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Path without the query.
    pub path: String,
    pub query: HashMap<String, String>,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    /// `METHOD /path`.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A query parameter, empty when it is not there.
    pub fn param(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

/// What the server does with a request.
pub enum Answer {
    /// Answers with JSON.
    Json(u16, Value),
    /// Answers with JSON and a header.
    JsonWith(u16, Value, (&'static str, &'static str)),
    /// Answers with something else.
    Text(u16, String),
    /// Answers with events, then ends the stream.
    Events(Vec<Value>),
    /// Becomes a WebSocket that says this, echoes one message in upper case and closes.
    Socket(String),
    /// Closes the connection without an answer.
    Drop,
}

impl Answer {
    /// An error as the real server tells it.
    pub fn problem(code: shared::Code, detail: &str) -> Self {
        let problem = shared::error::Problem::new(shared::Error::new(code, detail), "req-42".into());
        Self::Json(problem.status, json!(problem))
    }

    /// A page with all items.
    pub fn page(items: Vec<Value>) -> Self {
        Self::Json(200, json!({"items": items}))
    }
}

type Handler = dyn Fn(&Asked, usize) -> Answer + Send + Sync;

/// The server and a home folder for the program.
pub struct Fake {
    pub url: String,
    pub home: TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl Fake {
    /// Starts a server. The handler is given each request and how many came before it.
    pub async fn start(handler: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let handler: Arc<Handler> = Arc::new(handler);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&log));
                connections.spawn(async move {
                    let service = service_fn(move |request| serve(request, Arc::clone(&handler), Arc::clone(&log)));
                    let http = hyper::server::conn::http1::Builder::new();
                    // A connection that is dropped on purpose ends with an error.
                    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        Self { url, home: tempfile::tempdir().unwrap(), asked, _tasks: tasks }
    }

    /// The requests that came so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The requests that came so far, as `METHOD /path`.
    pub fn lines(&self) -> Vec<String> {
        self.asked().iter().map(Asked::line).collect()
    }

    /// The program, talking to this server.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = cmd::kring(self.home.path());
        command.env("KRING_URL", &self.url).env("KRING_TOKEN", "secret").args(args);
        command
    }

    /// Runs the program to its end.
    pub async fn run(&self, args: &[&str]) -> Run {
        cmd::finish(self.command(args)).await
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn serve(
    mut request: Request<Incoming>,
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Body>, std::io::Error> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes().to_vec();
    let url = reqwest::Url::parse(&format!("http://x{}", parts.uri)).unwrap();
    let headers = parts.headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap_or("?").to_string())).collect();
    let asked = Asked {
        method: parts.method.to_string(),
        path: url.path().to_string(),
        query: url.query_pairs().into_owned().collect(),
        headers,
        body,
    };
    let count = {
        let mut log = log.lock().unwrap();
        log.push(asked.clone());
        log.len() - 1
    };
    let response = Response::builder().header("X-Request-Id", format!("req-{count}"));
    let full = |bytes: Vec<u8>| Full::new(Bytes::from(bytes)).boxed_unsync();
    match handler(&asked, count) {
        Answer::Drop => Err(std::io::Error::other("dropped")),
        Answer::Json(204, _) => Ok(response.status(204).body(full(Vec::new())).unwrap()),
        Answer::Json(status, value) => Ok(response.status(status).body(full(value.to_string().into_bytes())).unwrap()),
        Answer::JsonWith(status, value, (name, content)) => {
            Ok(response.status(status).header(name, content).body(full(value.to_string().into_bytes())).unwrap())
        }
        Answer::Text(status, text) => Ok(response.status(status).body(full(text.into_bytes())).unwrap()),
        Answer::Events(events) => {
            let pieces = events.into_iter().map(|event| {
                let text = format!("id: {}\ndata: {event}\n\n", event["cursor"]);
                Ok::<_, Infallible>(Frame::data(Bytes::from(text)))
            });
            let hello = std::iter::once(Ok(Frame::data(Bytes::from(": hello\n\n"))));
            let body = StreamBody::new(futures_util::stream::iter(hello.chain(pieces))).boxed_unsync();
            Ok(response.header("Content-Type", "text/event-stream").body(body).unwrap())
        }
        Answer::Socket(greeting) => {
            let key = derive_accept_key(asked.header("sec-websocket-key").as_bytes());
            #[expect(clippy::disallowed_methods, reason = "the socket outlives the request that opens it")]
            tokio::spawn(async move {
                let upgraded = TokioIo::new(upgrade.await.unwrap());
                let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, None).await;
                socket.send(Message::text(greeting)).await.unwrap();
                if let Some(Ok(message)) = socket.next().await {
                    let text = String::from_utf8(message.into_data().to_vec()).unwrap();
                    socket.send(Message::binary(text.to_uppercase().into_bytes())).await.unwrap();
                }
                let _ = socket.close(None).await;
            });
            let response = response.status(101).header("Connection", "Upgrade").header("Upgrade", "websocket");
            Ok(response.header("Sec-WebSocket-Accept", key).body(full(Vec::new())).unwrap())
        }
    }
}

/// The id whose last digit this is.
pub fn id(n: u64) -> String {
    format!("01939f00-3b1a-7c3e-9d5e-{n:012x}")
}

/// A time so long ago.
pub fn ago(seconds: i64) -> String {
    shared::time::Timestamp::now().plus_ms(-seconds * 1000).to_string()
}

/// A vm.
pub fn vm(n: u64, name: &str, state: &str) -> Value {
    json!({
        "id": id(n), "name": name, "account_id": id(900), "state": state, "hostname": name, "vcpus": 2,
        "memory": 536_870_912_u64, "image_id": id(300), "root_volume_id": id(400), "firmware": "bios",
        "host_id": id(200),
        "nics": [{"id": id(500), "network_id": id(600), "mac": "52:54:00:00:00:01", "ip": "10.77.0.5"}],
        "state_since": ago(180), "created_at": ago(3 * 86_400 + 60),
        "links": {"self": {"method": "GET", "href": "/v1/vms/x"}, "stop": {"method": "POST", "href": "/v1/vms/x/stop"}},
    })
}

/// A job on a vm.
pub fn job(n: u64, state: &str, step: Option<&str>, progress: u8) -> Value {
    json!({
        "id": id(n), "kind": "vm.start", "state": state, "cancel_requested": false, "progress": progress,
        "step": step, "steps": ["reserve", "define", "start"], "resource": {"kind": "vm", "id": id(1)},
        "account_id": id(900), "request_id": "req-1", "created_at": ago(5), "deadline_at": ago(-600),
    })
}

/// The answer to a change that became a job.
pub fn accepted(n: u64) -> Answer {
    Answer::Json(202, json!({"job_id": id(n), "resource": {"kind": "vm", "id": id(1)}}))
}

/// What lookups of names of other resources are answered.
pub fn names(asked: &Asked) -> Option<Answer> {
    let named = |n: u64, name: &str| Answer::page(vec![json!({"id": id(n), "name": name})]);
    match asked.line().as_str() {
        "GET /v1/hosts" => Some(named(200, "h1")),
        "GET /v1/images" => Some(named(300, "debian")),
        "GET /v1/networks" => Some(named(600, "lan")),
        line if line == format!("GET /v1/hosts/{}", id(200)) => {
            Some(Answer::Json(200, json!({"id": id(200), "name": "h1"})))
        }
        _ => None,
    }
}
