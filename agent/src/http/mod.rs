//! The agent's listener: HTTP/1.1 over mutual TLS, connections on demand, everything bounded.
//!
//! What a path means is in [`router`]; commands become tasks in [`commands`]; [`console`] and [`migration`]
//! turn a request into a stream. Nothing here knows libvirt or disks.

mod commands;
mod console;
mod migration;
mod router;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use shared::wire::STREAM_PROTOCOL;
use shared::{Code, Error};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::app::App;
use crate::identity::tls::{self, Peer};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long the head of a request may take, and how long a connection may be idle between two.
const HEADER: Duration = Duration::from_secs(5);
/// How long the body of a request may take.
const BODY: Duration = Duration::from_secs(10);
/// Largest body of a request: a VM with its user data is far below.
const MAX_BODY: usize = 2 << 20;
/// Consoles at a time.
const MAX_CONSOLES: usize = 128;
/// How long to wait after a failed accept: the process may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Answer = Response<Full<Bytes>>;

/// Serves connections until the agent stops, then lets open requests end.
pub async fn serve(app: Arc<App>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(app.config.agent.max_connections.max(1)));
    let consoles = Arc::new(Semaphore::new(MAX_CONSOLES));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let Some((place, accepted)) = app.shutdown.run_until_cancelled(next).await else { return };
        let Ok(place) = place else { return };
        match accepted {
            Ok((stream, peer)) => {
                let (app, consoles) = (Arc::clone(&app), Arc::clone(&consoles));
                app.tracker.clone().spawn(async move {
                    if let Err(error) = connection(app, consoles, stream, place).await {
                        tracing::debug!(%peer, %error, "a connection ended early");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    app: Arc<App>,
    consoles: Arc<Semaphore>,
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let acceptor = TlsAcceptor::from(Arc::clone(&app.identity.load().server));
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = leaf.and_then(tls::peer).ok_or_else(|| io::Error::other("the client has no certificate"))?;
    if let Peer::Host(id) = peer
        && !app.expected.knows(id)
    {
        return Err(io::Error::other(format!("no guest is expected from host {id}")));
    }
    let service = service_fn(|request: Request<Incoming>| {
        let (app, consoles) = (Arc::clone(&app), Arc::clone(&consoles));
        async move { Ok::<_, std::convert::Infallible>(router::answer(&app, peer, &consoles, request).await) }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    tokio::select! {
        result = connection.as_mut() => return result.map_err(io::Error::other),
        () = app.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(io::Error::other)
}

/// The body of a request, within its limits.
async fn read_body(body: Incoming) -> Result<Bytes, Error> {
    let collect = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(BODY, collect).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            Err(Error::new(Code::TooLarge, format!("a command may have {MAX_BODY} bytes")))
        }
        Ok(Err(e)) => Err(Error::new(Code::InvalidRequest, format!("the body broke off: {e}"))),
        Err(_) => Err(Error::new(Code::DeadlineExceeded, "the body came too slowly")),
    }
}

/// Refuses a request for `what` that does not say that it becomes raw bytes.
fn must_upgrade(request: &Request<Incoming>, what: &str) -> Result<(), Error> {
    let wanted = request.headers().get(UPGRADE).and_then(|v| v.to_str().ok());
    if wanted.is_some_and(|v| v.eq_ignore_ascii_case(STREAM_PROTOCOL)) {
        return Ok(());
    }
    Err(Error::new(Code::InvalidRequest, format!("{what} needs the header Upgrade: {STREAM_PROTOCOL}")))
}

/// `101`: raw bytes follow.
fn switching() -> Answer {
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, http::HeaderValue::from_static(STREAM_PROTOCOL));
    answer
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut answer = Response::new(Full::new(Bytes::from(bytes)));
            *answer.status_mut() = status;
            answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            answer
        }
        Err(error) => refuse(&Error::internal(error)),
    }
}

fn refuse(error: &Error) -> Answer {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, error)
}

fn give<T: Serialize>(result: Result<T, Error>) -> Answer {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => refuse(&error),
    }
}
