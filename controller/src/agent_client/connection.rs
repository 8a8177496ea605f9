//! A connection to an agent: TCP, TLS, HTTP/1.1, and what goes over it.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use rustls::pki_types::ServerName;
use shared::id::HostId;
use shared::wire::{CONTROLLER_DNS_NAME, HEADER_AGENT, STREAM_PROTOCOL, host_dns_name};
use shared::{Code, Error, Result};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

/// Largest answer of an agent: an inventory of thousands of VMs.
const MAX_ANSWER: usize = 16 << 20;

/// How long connecting to another controller may take.
const TO_CONTROLLER: Duration = Duration::from_secs(5);
/// How long another controller may take to open a console, which it connects to its host before.
const BY_CONTROLLER: Duration = Duration::from_secs(20);

/// Whom to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRef {
    /// The host, which its certificate must name.
    pub id: HostId,
    /// `address:port` of its agent.
    pub address: String,
}

/// A request to an agent.
pub(super) struct Request {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    last: bool,
}

impl Request {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new(), last: false }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Display) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// Nothing is expected to follow it: a connection that is opened for it is closed after it.
    pub(super) const fn last(mut self) -> Self {
        self.last = true;
        self
    }

    pub(super) const fn is_last(&self) -> bool {
        self.last
    }

    pub(super) fn json(mut self, body: Vec<u8>) -> Self {
        self.body = body.into();
        self.header(header::CONTENT_TYPE.as_str(), "application/json")
    }
}

/// What an agent answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// Who it is, when it refuses because another one was meant.
    pub(super) agent_id: Option<Uuid>,
}

/// A console's raw bytes.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// An open connection: HTTP/1.1 in TLS, one exchange at a time. Nothing of it runs while it is not used.
pub(super) struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    connection: http1::Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>>,
    ended: bool,
}

impl Link {
    /// Connects, shows the controller's certificate and checks the host's.
    pub(super) async fn open(tls: &Arc<rustls::ClientConfig>, host: &HostRef) -> Result<Self> {
        let stream = connect(tls, host).await?;
        let opened = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|e| unreachable_host(host, &e))?;
        Ok(Self { sender, connection, ended: false })
    }

    /// Sends `request` and reads the answer; `close`: the host is to close the connection after it.
    pub(super) async fn exchange(&mut self, host: &HostRef, request: &Request, close: bool) -> Result<Answer> {
        let request = to_http(host, request, close.then_some("close"))?;
        let Self { sender, connection, ended } = self;
        let answer = async {
            sender.ready().await.map_err(|e| unreachable_host(host, &e))?;
            let response = sender.send_request(request).await.map_err(|e| unreachable_host(host, &e))?;
            let status = response.status();
            let agent_id = response.headers().get(HEADER_AGENT).and_then(|id| id.to_str().ok()?.parse().ok());
            let agent_id = agent_id.filter(|_| status == StatusCode::PRECONDITION_FAILED);
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| unreachable_host(host, e.as_ref()))?.to_bytes();
            Ok(Answer { status, body, agent_id })
        };
        let connection = async {
            // Why it ended is what the answer says.
            let _ = connection.await;
            *ended = true;
        };
        driven(connection, answer).await
    }

    /// Whether it may carry one more exchange.
    pub(super) const fn is_open(&self) -> bool {
        !self.ended
    }
}

/// Does `work` with a host before `deadline`.
pub(super) async fn before<T>(deadline: Instant, host: &HostRef, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| {
        Err(Error::new(Code::HostUnreachable, format!("host {} does not answer at {}", host.id, host.address)))
    })
}

/// Asks for an upgrade of `path` to a raw stream.
pub(super) async fn upgrade(
    tls: &Arc<rustls::ClientConfig>,
    host: &HostRef,
    path: &str,
    deadline: Instant,
) -> Result<Upgraded> {
    before(deadline, host, async {
        let Link { mut sender, connection, .. } = Link::open(tls, host).await?;
        let request = Request::new(Method::GET, path).header(header::UPGRADE.as_str(), STREAM_PROTOCOL);
        let request = to_http(host, &request, Some("upgrade"))?;
        let answer = async {
            let mut response = sender.send_request(request).await.map_err(|e| unreachable_host(host, &e))?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return hyper::upgrade::on(&mut response).await.map_err(|e| unreachable_host(host, &e));
            }
            let body = Limited::new(response.into_body(), 64 << 10).collect().await;
            let body = body.map_err(|e| unreachable_host(host, e.as_ref()))?.to_bytes();
            Err(serde_json::from_slice(&body)
                .unwrap_or_else(|_| Error::new(Code::HostFailed, "the agent did not open the console")))
        };
        driven(connection.with_upgrades(), answer).await.map(TokioIo::new)
    })
    .await
}

/// See [`super::Agents::hand_on`].
pub(super) async fn hand_on<B>(
    tls: &Arc<rustls::ClientConfig>,
    controller: &[String],
    request: http::Request<B>,
) -> Result<http::Response<Bytes>>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let lost = |error: &(dyn std::error::Error + 'static)| unreachable_controller(controller, error);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(to_controller(tls, controller).await?)).await.map_err(|e| lost(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| lost(e.as_ref()))?;
        Ok(http::Response::from_parts(head, body.to_bytes()))
    };
    driven(connection, answer).await
}

/// See [`super::Agents::hand_on_upgrade`].
pub(super) async fn hand_on_upgrade(
    tls: &Arc<rustls::ClientConfig>,
    controller: &[String],
    request: http::Request<()>,
) -> Result<(http::Response<Bytes>, Option<Upgraded>)> {
    let lost = |error: &(dyn std::error::Error + 'static)| unreachable_controller(controller, error);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(to_controller(tls, controller).await?)).await.map_err(|e| lost(&e))?;
    let answer = async {
        let request = request.map(|()| Full::<Bytes>::default());
        let mut response = sender.send_request(request).await.map_err(|e| lost(&e))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut response).await.map_err(|e| lost(&e))?;
            return Ok((response.map(|_| Bytes::new()), Some(TokioIo::new(upgraded))));
        }
        let (head, body) = response.into_parts();
        let body = Limited::new(body, 64 << 10).collect().await.map_err(|e| lost(e.as_ref()))?;
        Ok((http::Response::from_parts(head, body.to_bytes()), None))
    };
    let answer = driven(connection.with_upgrades(), answer);
    timeout_at(Instant::now() + BY_CONTROLLER, answer).await.unwrap_or_else(|late| Err(lost(&late)))
}

/// A TLS connection to another controller, checked to be one, by the first of its addresses that answers.
async fn to_controller(tls: &Arc<rustls::ClientConfig>, controller: &[String]) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(CONTROLLER_DNS_NAME)
        .map_err(|e| Error::internal(format_args!("the controllers' name is not a DNS name: {e}")))?;
    let mut lost = io::Error::other("it has no address");
    for address in controller {
        let opened = timeout_at(Instant::now() + TO_CONTROLLER, tls_stream(tls, address, name.clone()));
        match opened.await.unwrap_or_else(|late| Err(late.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => lost = error,
        }
    }
    Err(unreachable_controller(controller, &lost))
}

fn unreachable_controller(controller: &[String], error: &(dyn std::error::Error + 'static)) -> Error {
    let addresses = controller.join(" or ");
    let text = format!("the controller at {addresses}, which has this, cannot be reached: try again in a moment");
    Error::new(Code::Unavailable, text).caused_by(error)
}

/// Resolves with what comes over a connection, which makes progress meanwhile. A connection carries one exchange
/// at a time: it needs no task of its own.
async fn driven<T>(connection: impl Future, answer: impl Future<Output = T>) -> T {
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

async fn connect(tls: &Arc<rustls::ClientConfig>, host: &HostRef) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host_dns_name(host.id))
        .map_err(|e| Error::internal(format_args!("a host's name is not a DNS name: {e}")))?;
    tls_stream(tls, &host.address, name).await.map_err(|e| {
        if !is_own(&e) {
            return unreachable_host(host, &e);
        }
        let text = format!("this controller has no room for a connection to host {}", host.id);
        Error::new(Code::Unavailable, text).caused_by(&e)
    })
}

/// Whether a connection failed for want of files, memory or ports here: that says nothing of the other side.
fn is_own(error: &io::Error) -> bool {
    use Errno::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let own = [EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|number| own.contains(&Errno::from_raw(number)))
}

async fn tls_stream(
    tls: &Arc<rustls::ClientConfig>,
    address: &str,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::clone(tls)).connect(name, stream).await
}

fn to_http(host: &HostRef, request: &Request, connection: Option<&'static str>) -> Result<http::Request<Full<Bytes>>> {
    let mut builder = http::Request::builder()
        .method(&request.method)
        .uri(&request.path)
        .header(header::HOST, host_dns_name(host.id));
    if let Some(connection) = connection {
        builder = builder.header(header::CONNECTION, connection);
    }
    for (name, value) in &request.headers {
        builder = builder.header(*name, value);
    }
    builder
        .body(Full::new(request.body.clone()))
        .map_err(|e| Error::internal(format_args!("a request to an agent could not be built: {e}")))
}

fn unreachable_host(host: &HostRef, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(Code::HostUnreachable, format!("host {} cannot be reached at {}", host.id, host.address))
        .caused_by(error)
}
