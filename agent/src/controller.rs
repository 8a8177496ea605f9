//! The way to the controllers: requests that try them in turn, callbacks, events, image content.
//!
//! A connection exists only while requests need it, and a moment longer. Everything retried here has a limit and jitter;
//! what is given up is found again by the controller itself (a task by its id, a change by the
//! digest in the next ping).

mod addresses;
pub mod events;
pub mod news;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::id::ImageId;
use shared::wire::{HEADER_REQUEST_ID, HEADER_TRACEPARENT, TaskReport};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trace::span::around;
use trace::{Kind, Span};

use addresses::Addresses;
pub use events::Events;

use crate::identity;

/// The first wait of every retry here.
pub const A_MOMENT: Duration = Duration::from_millis(250);
/// The longest wait of every retry here.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Why a controller was not reached, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no address.
    #[error("no controller is known: name one in [controller] urls, or join again")]
    NoController,
    /// An address cannot be used.
    #[error("\"{0}\" is not an address of a controller: give https://ADDRESS:PORT")]
    Address(String),
    /// The request did not get through.
    #[error("{url} could not be reached")]
    Transport {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// It answered with an error.
    #[error("the controller refused: {}", .0.chain())]
    Refused(shared::Error),
    /// Its answer is not of the protocol.
    #[error("{url} answered what is not of the protocol ({status})")]
    Protocol {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The agent stops, or the time is over.
    #[error("given up")]
    GivenUp,
}

impl Error {
    /// Whether another try, or another controller, may do better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Refused(error) => error.code.is_transient() || error.code.status() >= 500,
            Self::Protocol { status, .. } => *status >= 500,
            Self::NoController | Self::Address(_) | Self::GivenUp => false,
        }
    }
}

/// Speaks to the controllers with the host's certificate.
#[derive(Clone)]
pub struct Client {
    identity: Arc<identity::Current>,
    addresses: Arc<Addresses>,
    timeout: Duration,
    /// Events on their way; [`Events::run`] sends them.
    pub events: Events,
}

impl Client {
    /// A client for the addresses in the configuration, those that controllers tell, and those of the
    /// join, whose files are in `store`.
    pub fn new(
        identity: Arc<identity::Current>,
        config: &crate::config::ControllerConfig,
        store: identity::Store,
        events: Events,
    ) -> Self {
        let addresses = Arc::new(Addresses::new(&config.urls, store));
        Self { identity, addresses, timeout: config.timeout(), events }
    }

    /// Takes over the addresses of all controllers, as one of them told.
    pub fn tell(&self, controllers: Vec<String>) {
        self.addresses.tell(controllers);
    }

    /// Posts to the first controller that answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T, Error> {
        self.post_first(None, path, body).await
    }

    /// Posts a task's state to its callback, or, when nothing answers there, to the other controllers,
    /// which pass it on to whoever waits for it. Each is tried once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn report(&self, callback: &str, report: &TaskReport) -> Result<(), Error> {
        let bad = || Error::Address(callback.to_string());
        let url = reqwest::Url::parse(callback).map_err(|_| bad())?;
        let base = url.origin().ascii_serialization();
        let describe = |span: &mut Span| span.set_text("kring.task.id", report.task_id());
        let post = self.post_first::<serde::de::IgnoredAny>(Some(&base), url.path(), report);
        around(Kind::Client, "callback", describe, Box::pin(post)).await.map(|_| ())
    }

    /// Posts a task's outcome to its callback until it is taken, `until` passes or `stop` is cancelled.
    /// The callback is asked for before each try: it changes when another controller takes over.
    ///
    /// # Errors
    /// The last failure, or `GivenUp`, also when there is no callback.
    pub async fn deliver(
        &self,
        callback: impl Fn() -> Option<String>,
        report: &TaskReport,
        until: Instant,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut backoff = Backoff::default();
        loop {
            let Some(to) = callback() else { return Err(Error::GivenUp) };
            match self.report(&to, report).await {
                Ok(()) => return Ok(()),
                // Refused at an address that is not the callback any more.
                Err(e) if !e.is_passing() && callback().as_ref() != Some(&to) => {}
                Err(e) if !e.is_passing() || Instant::now() >= until => return Err(e),
                Err(error) => tracing::debug!(task.id = %report.task_id(), %error, "the callback is tried again"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.wait()) => {}
                () = stop.cancelled() => return Err(Error::GivenUp),
            }
        }
    }

    /// Asks the controllers in turn for the content of an image, from byte `from` on when `etag` still
    /// holds. One that does not have it says nothing of the others.
    ///
    /// # Errors
    /// See [`Error`]; a refusal is read, a success is given to stream.
    pub async fn image_content(&self, image: ImageId, resume: Option<(u64, &str)>) -> Result<reqwest::Response, Error> {
        let identity = self.identity.load_full();
        let mut error = Error::NoController;
        for base in self.addresses.in_turn(None, &identity.controllers) {
            let url = join_url(&base, &format!("/agent/v1/images/{image}/content"))?;
            let mut request = identity.client.get(&url);
            if let Some((from, etag)) = resume {
                request = request.header("range", format!("bytes={from}-")).header("if-range", etag);
            }
            let refused = match request.send().await {
                Ok(answer) if answer.status().is_success() || answer.status().as_u16() == 416 => {
                    self.addresses.answered(&base);
                    return Ok(answer);
                }
                Ok(answer) => read_error(url, answer).await,
                Err(source) => {
                    self.addresses.failed(&base);
                    Error::Transport { url, source }
                }
            };
            let elsewhere = matches!(&refused, Error::Refused(e) if e.code == shared::Code::NotFound);
            if !refused.is_passing() && !elsewhere {
                return Err(refused);
            }
            // While one cannot be asked, it may be the one that has it.
            if refused.is_passing() || !error.is_passing() {
                error = refused;
            }
        }
        Err(error)
    }

    async fn post_first<T: DeserializeOwned>(
        &self,
        first: Option<&str>,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Error> {
        let identity = self.identity.load_full();
        let mut error = Error::NoController;
        for base in self.addresses.in_turn(first, &identity.controllers) {
            match post(&identity.client, &join_url(&base, path)?, body, self.timeout).await {
                Err(e) if e.is_passing() => {
                    self.addresses.failed(&base);
                    tracing::debug!(error = crate::log::chain(&e), "the next controller is tried");
                    error = e;
                }
                answered => {
                    self.addresses.answered(&base);
                    return answered;
                }
            }
        }
        Err(error)
    }

    /// Whom this client speaks for.
    #[must_use]
    pub fn host_id(&self) -> shared::id::HostId {
        self.identity.load().host_id
    }
}

/// Posts to addresses in turn until one answers.
///
/// # Errors
/// See [`Error`].
pub async fn post_in_turn<T: DeserializeOwned>(
    client: &reqwest::Client,
    urls: &[String],
    path: &str,
    body: &(impl Serialize + Sync),
) -> Result<T, Error> {
    let mut error = Error::NoController;
    for base in urls {
        match post(client, &join_url(base, path)?, body, LONGEST_WAIT).await {
            Err(e) if e.is_passing() => error = e,
            other => return other,
        }
    }
    Err(error)
}

async fn post<T: DeserializeOwned>(
    client: &reqwest::Client,
    url: &str,
    body: &(impl Serialize + Sync),
    timeout: Duration,
) -> Result<T, Error> {
    let transport = |source| Error::Transport { url: url.to_string(), source };
    let mut request = client.post(url).timeout(timeout).json(body);
    if let Some(scope) = trace::current() {
        request = request.header(HEADER_TRACEPARENT, scope.trace.header());
        if !scope.request_id.is_empty() {
            request = request.header(HEADER_REQUEST_ID, &*scope.request_id);
        }
    }
    let answer = request.send().await.map_err(transport)?;
    let status = answer.status();
    if !status.is_success() {
        return Err(read_error(url.to_string(), answer).await);
    }
    let bytes = answer.bytes().await.map_err(transport)?;
    let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
    serde_json::from_slice(bytes).map_err(|_| Error::Protocol { url: url.to_string(), status: status.as_u16() })
}

/// The error in an answer; a bare status when its body is not of the protocol.
async fn read_error(url: String, answer: reqwest::Response) -> Error {
    let status = answer.status().as_u16();
    match answer.bytes().await.ok().and_then(|b| serde_json::from_slice(&b).ok()) {
        Some(error) => Error::Refused(error),
        None => Error::Protocol { url, status },
    }
}

/// An address and a path as one URL. The address must be `https://` and nothing but an authority.
fn join_url(base: &str, path: &str) -> Result<String, Error> {
    let bad = || Error::Address(base.to_string());
    let url = reqwest::Url::parse(base).map_err(|_| bad())?;
    if url.scheme() != "https" || url.path() != "/" || url.query().is_some() || url.host_str().is_none() {
        return Err(bad());
    }
    url.join(path).map(String::from).map_err(|_| bad())
}

/// Waits that double up to a limit, with jitter, so that many hosts do not come back together.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: A_MOMENT }
    }
}

impl Backoff {
    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::random_range(0.5..1.5));
        self.next = (self.next * 2).min(LONGEST_WAIT);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_and_only_an_address() {
        assert_eq!(join_url("https://10.0.0.1:8443", "/agent/v1/x").unwrap(), "https://10.0.0.1:8443/agent/v1/x");
        assert_eq!(join_url("https://c1.example/", "/a").unwrap(), "https://c1.example/a");
        for bad in ["http://10.0.0.1", "10.0.0.1:8443", "https://", "https://a/b", "https://a/?x", ""] {
            assert!(matches!(join_url(bad, "/a"), Err(Error::Address(_))), "{bad}");
        }
    }

    #[test]
    fn waits_grow_to_a_limit() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..20).map(|_| backoff.wait()).collect();
        assert!(waits[0] < Duration::from_millis(400) && waits.iter().all(|w| *w <= LONGEST_WAIT.mul_f64(1.5)));
        assert!(waits[19] >= LONGEST_WAIT / 2);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let refused = |code| Error::Refused(shared::Error::new(code, "x")).is_passing();
        assert!(refused(shared::Code::Unavailable) && refused(shared::Code::OwnerLeft));
        assert!(!refused(shared::Code::NotFound) && !refused(shared::Code::Forbidden));
    }
}
