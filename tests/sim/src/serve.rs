//! The listener of a simulated host: HTTP/1.1 over mutual TLS, as the wire says, with the faults that
//! hit a connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use shared::id::TaskId;
use shared::wire::controllers::{self, HEADER_CONTROLLERS};
use shared::wire::{Empty, HEADER_AGENT, HEADER_CALLBACK, HEADER_GENERATION, other_agent};
use shared::{Code, Error, Result};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::host::{Host, Life};
use super::task::{Order, Refused, submit};
use super::{Shared, console};

pub(super) type Answer = Response<Full<Bytes>>;

/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether the other side has given up.
const LOOK: Duration = Duration::from_secs(5);

/// The connection breaks off instead of an answer.
#[derive(Debug, thiserror::Error)]
#[error("a fault broke the connection off")]
struct BrokenOff;

/// Serves the connections to all hosts until `until` is cancelled. There is one socket for all of them,
/// and the address that was called says which host is meant.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener, until: CancellationToken) {
    while let Some(accepted) = until.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            // The process may be out of file descriptors.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(host) = stream.local_addr().ok().and_then(|called| shared.called(called.ip())) else { continue };
        // Nobody listens there now. Dropping the stream resets it.
        let Some(listening) = host.listening() else { continue };
        let open = Arc::clone(&shared.open);
        shared.tasks.spawn(async move {
            let _open = open;
            // A client that breaks off, or one whose certificate is refused, is the client's business.
            let _ = listening.run_until_cancelled_owned(connection(host, stream)).await;
        });
    }
}

async fn connection(host: Arc<Host>, stream: TcpStream) -> anyhow::Result<()> {
    tokio::select! {
        () = host.thawed() => {}
        () = given_up(&stream) => return Ok(()),
    }
    stream.set_nodelay(true)?;
    let life = host.life().token.clone();
    let stream = TlsAcceptor::from(host.server_config()).accept(stream).await?;
    let service = service_fn(|request: Request<Incoming>| {
        let host = Arc::clone(&host);
        async move {
            host.thawed().await;
            answer(&host, request).await
        }
    });
    let serve =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    // A restart of the agent breaks its connections off.
    if let Some(result) = life.run_until_cancelled(serve).await {
        result?;
    }
    Ok(())
}

/// Resolves some time after the other side has closed a connection on which nothing is read. It is looked at now and
/// then: what it has sent before lies there, unread, for when the host goes on.
async fn given_up(stream: &TcpStream) {
    while !stream.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed()) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn answer(host: &Arc<Host>, request: Request<Incoming>) -> std::result::Result<Answer, BrokenOff> {
    let path = request.uri().path().to_string();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let method = request.method().clone();
    if let Some(list) = request.headers().get(HEADER_CONTROLLERS).and_then(|list| list.to_str().ok()) {
        host.tell(controllers::read(list));
    }
    match parts.as_slice() {
        ["v1", "ping"] if method == get => ping(host).await,
        ["v1", "facts"] if method == get => Ok(give(Ok(host.facts()))),
        ["v1", "inventory"] if method == get => Ok(give(host.inventory())),
        ["v1", "commands", noun, verb] if method == post => command(host, &format!("{noun}/{verb}"), request).await,
        ["v1", "vms", id, "console", kind] if method == get => Ok(console::open(host, id, kind, request)),
        ["v1", "tasks", id] if method == get => Ok(give(find(host, id).map(|entry| entry.report()))),
        ["v1", "tasks", id] if method == delete => Ok(match cancel(host, id, request.headers()) {
            Ok(()) => json(StatusCode::ACCEPTED, &Empty {}),
            Err(error) => refuse(&error),
        }),
        _ => Ok(refuse(&Error::new(Code::NotFound, "the simulator has nothing at this path"))),
    }
}

async fn ping(host: &Arc<Host>) -> std::result::Result<Answer, BrokenOff> {
    let plan = host.plan("ping", "");
    if plan.silence || plan.hang {
        std::future::pending::<Infallible>().await;
    }
    tokio::time::sleep(plan.delay).await;
    match plan.fail {
        _ if plan.drop_before || plan.drop_after => Err(BrokenOff),
        Some(error) => Ok(refuse(&error)),
        None => Ok(give(Ok(host.pong()))),
    }
}

async fn command(host: &Arc<Host>, path: &str, request: Request<Incoming>) -> std::result::Result<Answer, BrokenOff> {
    let from = request.headers().get(HEADER_CALLBACK).and_then(|url| url.to_str().ok()).unwrap_or_default();
    let plan = host.plan(path, from);
    if plan.silence {
        std::future::pending::<Infallible>().await;
    }
    if plan.drop_before {
        return Err(BrokenOff);
    }
    let (drop_after, unanswered, defer, held) = (plan.drop_after, plan.unanswered, plan.defer, plan.held.clone());
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Err(BrokenOff) };
    let (of, path) = (Arc::clone(host), path.to_string());
    let arrive = move || submit(&of, Order::read(&head.headers, of.clock_ms())?, &path, &body.to_bytes(), plan);
    let submitted = match held {
        None => arrive(),
        // It arrives whatever becomes of who has sent it, as what a network has kept back does.
        Some(until) => {
            let (arrives, arrived) = oneshot::channel();
            host.spawn(async move {
                until.cancelled().await;
                // Nobody waits for the answer any more when this fails.
                let _ = arrives.send(arrive());
            });
            arrived.await.map_err(|_| BrokenOff)?
        }
    };
    let (entry, new) = match submitted {
        Ok(submitted) => submitted,
        Err(Refused::Error(error)) => return Ok(refuse(&error)),
        Err(Refused::ForAnother(life)) => return Ok(for_another(&life)),
    };
    if unanswered {
        std::future::pending::<Infallible>().await;
    }
    if drop_after {
        entry.wait().await;
        return Err(BrokenOff);
    }
    let outcome = if new && defer { None } else { entry.quick_outcome().await };
    Ok(outcome.map_or_else(|| json(StatusCode::ACCEPTED, &Empty {}), give))
}

fn for_another(life: &Life) -> Answer {
    let mut answer = refuse(&other_agent());
    *answer.status_mut() = StatusCode::PRECONDITION_FAILED;
    if let Ok(id) = HeaderValue::from_str(&life.agent_id.to_string()) {
        answer.headers_mut().insert(HEADER_AGENT, id);
    }
    answer
}

/// Cancels a task, unless a newer generation has asked for it since.
fn cancel(host: &Host, id: &str, headers: &http::HeaderMap) -> Result<()> {
    let entry = find(host, id)?;
    let generation = headers.get(HEADER_GENERATION).and_then(|v| v.to_str().ok()).and_then(|t| t.parse().ok());
    if let Some(generation) = generation {
        host.life().table().check(&entry, generation)?;
    }
    entry.cancel();
    Ok(())
}

fn find(host: &Host, id: &str) -> Result<Arc<super::task::Entry>> {
    let id: TaskId = id.parse().map_err(|e: shared::id::InvalidId| Error::new(Code::InvalidRequest, e.to_string()))?;
    host.life().table().get(id).ok_or_else(|| Error::not_found("task", id))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut answer = Response::new(Full::new(Bytes::from(bytes)));
            *answer.status_mut() = status;
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer
        }
        Err(error) => refuse(&Error::internal(error)),
    }
}

pub(super) fn refuse(error: &Error) -> Answer {
    json(StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error)
}

pub(super) fn give<T: Serialize>(result: Result<T>) -> Answer {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => refuse(&error),
    }
}
