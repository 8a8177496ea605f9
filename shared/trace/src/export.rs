//! Spans on their way to a collector: a bounded queue, batches, limited retries, drops counted.
//!
//! There is one exporter for a process. Recording a span never waits; what the queue cannot hold, or
//! no collector takes, is dropped and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use shared::time::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::otlp::{self, Anchor, Resource};
use crate::span::Finished;

/// Most spans that wait: about 8 MB.
const MAX_WAITING: usize = 16_384;
/// Most spans in one request.
const MAX_BATCH: usize = 512;
/// How long spans are gathered for one request.
const GATHER: Duration = Duration::from_secs(1);
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often one batch is tried, and the first wait in between.
const TRIES: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How long the last spans may take when the process stops.
const LAST: Duration = Duration::from_secs(3);
/// How often drops are told of.
const TELL: Duration = Duration::from_secs(60);

static ON: AtomicBool = AtomicBool::new(false);
static STATE: OnceLock<State> = OnceLock::new();

struct State {
    waiting: Mutex<VecDeque<Finished>>,
    some: Notify,
    /// Of a million traces that begin here, so many are recorded.
    sampled_ppm: u32,
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// Where spans go, and who sends them.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://…` or `https://…` of a collector; `/v1/traces` is added when it is not there.
    pub endpoint: String,
    /// Part of the traces that begin here, 0 to 1; what a caller began is recorded as the caller wants.
    pub sample: f64,
    /// Name of the program.
    pub service: &'static str,
    /// Which of the processes of this name.
    pub instance: String,
    /// Its version.
    pub version: &'static str,
}

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is not one.
    #[error("tracing.otlp_endpoint \"{0}\" is not an address: give such as http://127.0.0.1:4318")]
    Endpoint(String),
    /// The client could not be made.
    #[error("the client for tracing.otlp_endpoint could not be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What became of spans since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Taken by the collector.
    pub sent: u64,
    /// Lost: the queue was full, or no collector took them.
    pub dropped: u64,
}

/// What became of spans; `None` when none are exported.
#[must_use]
pub fn figures() -> Option<Figures> {
    let state = STATE.get()?;
    Some(Figures { sent: state.sent.load(Relaxed), dropped: state.dropped.load(Relaxed) })
}

pub(crate) fn is_on() -> bool {
    ON.load(Relaxed)
}

/// Whether a trace that begins here is to be recorded.
pub(crate) fn sample() -> bool {
    STATE.get().is_none_or(|state| rand::random_range(0..1_000_000) < state.sampled_ppm)
}

pub(crate) fn push(span: Finished) {
    let Some(state) = STATE.get() else { return };
    let waiting = {
        let mut waiting = state.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_WAITING {
            state.dropped.fetch_add(1, Relaxed);
            return;
        }
        waiting.push_back(span);
        waiting.len()
    };
    if waiting == 1 || waiting == MAX_BATCH {
        state.some.notify_one();
    }
}

/// Sends spans. See [`start`].
pub struct Exporter {
    http: reqwest::Client,
    url: reqwest::Url,
    resource: Resource,
}

/// Begins to record spans; [`Exporter::run`] sends them. `None` when this process has an exporter.
///
/// # Errors
/// See [`Error`].
pub fn start(options: Options) -> Result<Option<Exporter>, Error> {
    let bad = || Error::Endpoint(options.endpoint.clone());
    let mut url = reqwest::Url::parse(&options.endpoint).map_err(|_| bad())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad());
    }
    if !url.path().ends_with("/v1/traces") {
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    }
    // A second call finds the first one's provider, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    if url.scheme() == "http" {
        // The system's authorities need not be there when nothing is asked of them.
        let nobody = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        builder = builder.tls_backend_preconfigured(nobody);
    }
    let http = builder.build().map_err(|e| Error::Client(e.into()))?;
    let state = State {
        waiting: Mutex::default(),
        some: Notify::new(),
        sampled_ppm: (options.sample.clamp(0.0, 1.0) * 1e6) as u32,
        sent: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
    };
    if STATE.set(state).is_err() {
        return Ok(None);
    }
    ON.store(true, Relaxed);
    let resource = Resource { service: options.service, instance: options.instance, version: options.version };
    Ok(Some(Exporter { http, url, resource }))
}

impl Exporter {
    /// Sends spans until `stop`, and then what is left.
    pub async fn run(self, stop: CancellationToken) {
        let Some(state) = STATE.get() else { return };
        let mut told = (0, Instant::now());
        let mut anchor = anchor();
        while stop.run_until_cancelled(gather(state)).await.is_some() {
            // The wall clock may have been set; within a batch both clocks go together.
            anchor = again(anchor);
            stop.run_until_cancelled(self.send(state, &anchor, take(state))).await;
            let dropped = state.dropped.load(Relaxed);
            if dropped > told.0 && told.1.elapsed() >= TELL {
                tracing::warn!(spans = dropped - told.0, endpoint = %self.url, "spans were dropped: the collector does not take them");
                told = (dropped, Instant::now());
            }
        }
        ON.store(false, Relaxed);
        let rest = async {
            loop {
                let batch = take(state);
                if batch.is_empty() {
                    return;
                }
                self.send(state, &anchor, batch).await;
            }
        };
        // What is not taken in this time is lost with the process.
        let _ = tokio::time::timeout(LAST, rest).await;
    }

    async fn send(&self, state: &State, anchor: &Anchor, batch: Vec<Finished>) {
        if batch.is_empty() {
            return;
        }
        let body = otlp::body(&self.resource, anchor, &batch).to_string();
        let mut wait = FIRST_WAIT;
        for attempt in 1..=TRIES {
            let request = self.http.post(self.url.clone()).header("content-type", "application/json");
            let answer = request.body(body.clone()).send().await;
            match answer.map(|answer| answer.status().as_u16()) {
                Ok(200..=299) => {
                    state.sent.fetch_add(batch.len() as u64, Relaxed);
                    return;
                }
                Ok(status) if !matches!(status, 429 | 502 | 503 | 504) => {
                    tracing::debug!(status, "the collector refused spans");
                    break;
                }
                Ok(status) => tracing::debug!(status, attempt, "the collector is busy"),
                Err(error) => tracing::debug!(%error, attempt, "the collector was not reached"),
            }
            if attempt < TRIES {
                tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await;
                wait *= 2;
            }
        }
        state.dropped.fetch_add(batch.len() as u64, Relaxed);
    }
}

/// Waits for spans, and then a little for more of them.
async fn gather(state: &State) {
    let len = || state.waiting.lock().unwrap_or_else(PoisonError::into_inner).len();
    while len() == 0 {
        state.some.notified().await;
    }
    let enough = async {
        while len() < MAX_BATCH {
            state.some.notified().await;
        }
    };
    // Enough or not: what is there is sent.
    let _ = tokio::time::timeout(GATHER, enough).await;
}

fn take(state: &State) -> Vec<Finished> {
    let mut waiting = state.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let n = waiting.len().min(MAX_BATCH);
    waiting.drain(..n).collect()
}

fn anchor() -> Anchor {
    Anchor { at: Instant::now(), unix_ns: i128::from(Timestamp::now().ms()) * 1_000_000 }
}

/// The anchor as it was while the clocks agree, so that spans of one trace keep their order.
fn again(before: Anchor) -> Anchor {
    let now = anchor();
    let drift = now.unix_ns - before.unix_ns - now.at.duration_since(before.at).as_nanos().cast_signed();
    if drift.abs() < 50_000_000 { before } else { now }
}
