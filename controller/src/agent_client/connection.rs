//! One request on a connection of its own: connect, TLS, HTTP/1.1, close.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use shared::id::HostId;
use shared::wire::host_dns_name;
use shared::{Code, Error, Result};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Largest answer of an agent: an inventory of thousands of VMs.
const MAX_ANSWER: usize = 16 << 20;

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
}

impl Request {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Display) -> Self {
        self.headers.push((name, value.to_string()));
        self
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
}

/// A console's raw bytes.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Sends `request` and reads the answer, all before `deadline`.
pub(super) async fn exchange(
    tls: &Arc<rustls::ClientConfig>,
    host: &HostRef,
    request: Request,
    deadline: Instant,
) -> Result<Answer> {
    timeout_at(deadline, async {
        let stream = connect(tls, host).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable_host(host, &e))?;
        let request = to_http(host, request, "close")?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| unreachable_host(host, &e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| unreachable_host(host, e.as_ref()))?.to_bytes();
            Ok(Answer { status, body })
        };
        tokio::pin!(connection, answer);
        // The connection only carries this one exchange: it needs no task of its own.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    })
    .await
    .unwrap_or_else(|_| {
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
    timeout_at(deadline, async {
        let stream = connect(tls, host).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable_host(host, &e))?;
        let request = Request::new(Method::GET, path).header(header::UPGRADE.as_str(), "kring-stream");
        let request = to_http(host, request, "upgrade")?;
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
        let connection = connection.with_upgrades();
        tokio::pin!(connection, answer);
        let stream = tokio::select! {
            biased;
            stream = &mut answer => stream,
            _ = &mut connection => answer.await,
        };
        stream.map(TokioIo::new)
    })
    .await
    .unwrap_or_else(|_| {
        Err(Error::new(Code::HostUnreachable, format!("host {} does not answer at {}", host.id, host.address)))
    })
}

async fn connect(tls: &Arc<rustls::ClientConfig>, host: &HostRef) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(&host.address).await.map_err(|e| unreachable_host(host, &e))?;
    stream.set_nodelay(true).map_err(|e| unreachable_host(host, &e))?;
    let name = ServerName::try_from(host_dns_name(host.id))
        .map_err(|e| Error::internal(format_args!("a host's name is not a DNS name: {e}")))?;
    TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|e| unreachable_host(host, &e))
}

fn to_http(host: &HostRef, request: Request, connection: &'static str) -> Result<http::Request<Full<Bytes>>> {
    let mut builder = http::Request::builder()
        .method(request.method)
        .uri(request.path)
        .header(header::HOST, host_dns_name(host.id))
        .header(header::CONNECTION, HeaderValue::from_static(connection));
    for (name, value) in request.headers {
        builder = builder.header(name, value);
    }
    builder
        .body(Full::new(request.body))
        .map_err(|e| Error::internal(format_args!("a request to an agent could not be built: {e}")))
}

fn unreachable_host(host: &HostRef, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(Code::HostUnreachable, format!("host {} cannot be reached at {}", host.id, host.address))
        .caused_by(error)
}
