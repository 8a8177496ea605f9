//! Requests from a simulated host to the controller: one connection each, closed afterwards.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use shared::wire::{CONTROLLER_DNS_NAME, HEADER_REQUEST_ID, HEADER_TRACEPARENT};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What the controller answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body of a success, or the controller's refusal.
    ///
    /// # Errors
    /// The refusal, or `internal` when the body is something else.
    pub fn read<T: DeserializeOwned>(&self) -> shared::Result<T> {
        let body: &[u8] = if self.body.is_empty() { b"null" } else { &self.body };
        if self.status.is_success() {
            return serde_json::from_slice(body).map_err(shared::Error::internal);
        }
        let refusal: Result<shared::Error, _> = serde_json::from_slice(body);
        Err(refusal.unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(body);
            shared::Error::internal(format_args!("status {}: {text}", self.status))
        }))
    }
}

/// Sends one request to `url`.
///
/// # Errors
/// When the controller cannot be reached or breaks the connection off.
pub async fn send(tls: &Arc<ClientConfig>, method: Method, url: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
    tokio::time::timeout(LIMIT, exchange(tls, method, url, body))
        .await
        .map_err(|_| anyhow!("no answer from {url}"))?
        .with_context(|| format!("asking {url}"))
}

async fn exchange(tls: &Arc<ClientConfig>, method: Method, url: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
    let uri: Uri = url.parse()?;
    let authority = uri.authority().context("the address has no host")?;
    let stream = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(CONTROLLER_DNS_NAME)?;
    let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, authority.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close");
    if let Some(scope) = trace::current() {
        request =
            request.header(HEADER_TRACEPARENT, scope.trace.header()).header(HEADER_REQUEST_ID, &*scope.request_id);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok(Answer { status, body })
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}
