//! A load generator of its own process: a kept-alive connection for each path, with one request at a time.
//! It prints what it saw as one line of JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::quantile;
use crate::client::Client;
use crate::sim::tls;

/// What the load generator saw.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Requests that were answered with 200.
    pub requests: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Median and 99th percentile of the time of a request, in microseconds.
    pub p50_us: f64,
    /// See `p50_us`.
    pub p99_us: f64,
}

/// Who is loaded, a controller as a rule, and who loads it.
#[derive(Clone)]
pub(super) struct Target {
    address: String,
    token: String,
    connector: TlsConnector,
}

/// One connection, and what drives it.
pub(super) struct Connected {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) driver: Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>>,
}

impl Target {
    /// The one that a CLI configuration names.
    pub(super) fn of(config: &Path) -> anyhow::Result<Self> {
        let (url, ca, token) = Client::parts_of_cli_config(config)?;
        let token = token.context("the configuration has no token")?;
        let address = url.strip_prefix("https://").context("an https URL")?.to_string();
        Self::new(address, token, &ca)
    }

    /// The one at an address, with a certificate of this authority.
    pub(super) fn new(address: String, token: String, ca: &str) -> anyhow::Result<Self> {
        let connector = TlsConnector::from(Arc::new(tls::client_config(ca)?));
        Ok(Self { address, token, connector })
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Connected> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(shared::wire::CONTROLLER_DNS_NAME)?;
        let stream = self.connector.connect(name, stream).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Connected { sender, driver })
    }

    pub(super) fn request(&self, method: &Method, path: &str, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.token));
        Ok(request.body(Full::new(body))?)
    }
}

/// Loads each of `paths` of the controller that the CLI configuration names.
///
/// # Errors
/// When any request is not answered with 200.
pub async fn run(config: &Path, paths: Vec<String>, seconds: u64) -> anyhow::Result<Seen> {
    let target = Target::of(config)?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let begin = Instant::now();
    let mut workers = JoinSet::new();
    for path in paths {
        let target = target.clone();
        workers.spawn(async move { worker(&target, &path, end).await });
    }
    let mut times: Vec<u32> = Vec::new();
    while let Some(worker) = workers.join_next().await {
        times.extend(worker??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    times.sort_unstable();
    Ok(Seen { requests: times.len() as u64, seconds, p50_us: quantile(&times, 0.5), p99_us: quantile(&times, 0.99) })
}

async fn worker(target: &Target, path: &str, end: Instant) -> anyhow::Result<Vec<u32>> {
    let Connected { mut sender, driver } = target.connect().await?;
    let requests = async {
        let mut times = Vec::new();
        while Instant::now() < end {
            let request = target.request(&Method::GET, path, Bytes::new())?;
            let begin = Instant::now();
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
            times.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        Ok(times)
    };
    tokio::select! {
        times = requests => times,
        ended = driver => Err(anyhow::anyhow!("the connection ended: {ended:?}")),
    }
}
