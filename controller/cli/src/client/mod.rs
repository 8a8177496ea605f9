//! The HTTP client: one request to one of the controllers, safely repeated.
//!
//! Every mutation carries an `Idempotency-Key` that stays the same through all attempts, so a request
//! whose answer was lost is not done twice. Attempts are bounded, with growing, random pauses; an
//! address that does not answer is left for the next one at once.

pub mod list;
pub mod sse;
pub mod tls;
pub mod ws;

mod failover;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use serde_json::Value;
use shared::error::{Code, Error, Problem};
use uuid::Uuid;

use crate::config::{Target, is_loopback};
use crate::error::{CliError, Result};

/// How often a request is sent at most.
const ATTEMPTS: usize = 5;
/// The first pause; it doubles with every attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause, also when the server asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// How long the server may take for an answer, besides what it was asked to wait.
const ANSWER: Duration = Duration::from_secs(30);

/// What is read everywhere but in streams.
const JSON: &str = "application/json";

/// A request.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The method.
    pub method: Method,
    /// Path below `/v1`, such as `/vms`.
    pub path: &'a str,
    /// Query parameters.
    pub query: Vec<(&'a str, String)>,
    /// JSON body.
    pub body: Option<Value>,
    /// Seconds that the server shall wait for the work to be done.
    pub wait_s: Option<u64>,
}

impl<'a> Call<'a> {
    /// A request without query and body.
    pub fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, query: Vec::new(), body: None, wait_s: None }
    }

    /// A read.
    pub fn get(path: &'a str) -> Self {
        Self::new(Method::GET, path)
    }

    /// Adds a query parameter.
    pub fn query(mut self, key: &'a str, value: impl ToString) -> Self {
        self.query.push((key, value.to_string()));
        self
    }

    /// Adds a body.
    pub fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Asks the server to wait for the work.
    pub fn wait(mut self, seconds: u64) -> Self {
        self.wait_s = Some(seconds);
        self
    }
}

/// A good answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// JSON body, `null` when there is none.
    pub body: Value,
}

/// Why an attempt failed.
enum Failure {
    /// Trying again cannot help.
    Final(CliError),
    /// It may help: after this pause, or at another address.
    Again { error: CliError, after: Option<Duration>, elsewhere: bool },
}

/// Talks to one of several controllers.
pub struct Client {
    http: reqwest::Client,
    urls: Vec<Url>,
    /// The address that is used, modulo their number.
    current: AtomicUsize,
    /// What is wrong at addresses that did not answer since they answered last.
    away: Mutex<Vec<failover::Away>>,
    token: Option<HeaderValue>,
    verbose: bool,
}

impl Client {
    /// A client for these addresses. Nothing is sent yet.
    pub fn new(target: &Target, verbose: bool) -> Result<Self> {
        // A second call finds the first one's provider, which is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .user_agent(concat!("kring/", env!("CARGO_PKG_VERSION")));
        if target.urls.iter().all(is_loopback) {
            builder = builder.no_proxy();
        }
        if let Some(pem) = &target.ca_pem {
            builder = builder.tls_backend_preconfigured(tls::config(pem)?);
        } else if target.urls.iter().all(|url| url.scheme() == "http") {
            // The system's authorities need not be read, nor be there, when nothing is asked of them.
            builder = builder.tls_backend_preconfigured(tls::nobody()?);
        }
        let http = builder.build().map_err(|e| CliError::Config {
            message: format!("the connection cannot be set up: {}", chain(&e).join(": ")),
            hint: "give the controller's certificate authority with --ca ca.pem".into(),
        })?;
        let token = target.token.as_deref().map(bearer).transpose()?;
        Ok(Self {
            http,
            urls: target.urls.clone(),
            current: AtomicUsize::new(0),
            away: Mutex::default(),
            token,
            verbose,
        })
    }

    /// The address that was reached last.
    pub fn url(&self) -> &Url {
        &self.urls[self.current.load(Ordering::Relaxed) % self.urls.len()]
    }

    fn address(&self, path: &str) -> Url {
        let mut url = self.url().clone();
        let base = url.path().trim_end_matches('/').to_string();
        url.set_path(&format!("{base}/v1{path}"));
        url
    }

    /// Sends a request until it is answered, a bounded number of times.
    pub async fn send(&self, call: Call<'_>) -> Result<Reply> {
        let key = (call.method != Method::GET).then(Uuid::new_v4);
        let attempts = ATTEMPTS.max(2 * self.urls.len());
        let mut attempt = 1;
        loop {
            let (error, after, elsewhere) = match self.once(&call, key).await {
                Ok(reply) => {
                    self.answered();
                    return Ok(reply);
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again { error, after, elsewhere }) => (error, after, elsewhere),
            };
            let moved = elsewhere && self.next_address(&error);
            if attempt >= attempts {
                return Err(self.with_all_tried(error));
            }
            // The other addresses are tried at once; only then is it worth waiting.
            if !moved || attempt.is_multiple_of(self.urls.len()) {
                let pause = pause(attempt, after);
                if self.verbose {
                    crate::output::note(&format!("  trying again in {} ms: {error}", pause.as_millis()));
                }
                tokio::time::sleep(pause).await;
            }
            attempt += 1;
        }
    }

    async fn once(&self, call: &Call<'_>, key: Option<Uuid>) -> Result<Reply, Failure> {
        let timeout = ANSWER + Duration::from_secs(call.wait_s.unwrap_or(0));
        let mut request = self.request(call.method.clone(), call.path, &call.query, JSON).timeout(timeout);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key.to_string());
        }
        if let Some(seconds) = call.wait_s {
            request = request.header("Prefer", format!("wait={seconds}"));
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        self.execute(request).await
    }

    /// A request with what all of them carry.
    fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        accept: &'static str,
    ) -> reqwest::RequestBuilder {
        let mut url = self.address(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url).header(ACCEPT, accept);
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    async fn execute(&self, request: reqwest::RequestBuilder) -> Result<Reply, Failure> {
        let (http, request) = request.build_split();
        let request = request.map_err(|e| Failure::Final(CliError::Usage(chain(&e).join(": "))))?;
        let line = self.verbose.then(|| format!("> {} {}", request.method(), request.url()));
        let response = http.execute(request).await.map_err(|e| self.connection_failure(&e))?;
        if let Some(line) = line {
            crate::output::note(&format!("{line}\n< {} {}", response.status(), header(&response, "x-request-id")));
        }
        let status = response.status();
        if status.is_success() {
            let text = response.bytes().await.map_err(|e| self.connection_failure(&e))?;
            if text.is_empty() {
                return Ok(Reply { body: Value::Null });
            }
            return serde_json::from_slice(&text)
                .map(|body| Reply { body })
                .map_err(|_| Failure::Final(CliError::Protocol(format!("{} answered without JSON", self.url()))));
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let problem = self.problem(response).await;
        let again = match problem.code {
            Code::RateLimited | Code::Unavailable | Code::OwnerLeft => true,
            _ => matches!(problem.status, 429 | 503) && after.is_some(),
        };
        let elsewhere = matches!(problem.code, Code::Unavailable | Code::OwnerLeft);
        let error = CliError::Problem(Box::new(problem));
        Err(if again {
            Failure::Again { error, after: after.map(Duration::from_secs), elsewhere }
        } else {
            Failure::Final(error)
        })
    }

    /// The error in an answer, whatever it looks like.
    async fn problem(&self, response: reqwest::Response) -> Problem {
        let status = response.status();
        let request_id = header(&response, "x-request-id");
        let text = response.text().await.unwrap_or_default();
        if let Ok(problem) = serde_json::from_str::<Problem>(&text) {
            return problem;
        }
        let code = match status.as_u16() {
            401 => Code::Unauthenticated,
            403 => Code::Forbidden,
            404 => Code::NotFound,
            429 => Code::RateLimited,
            // What stands between says that there is no controller behind it just now.
            502 | 503 => Code::Unavailable,
            _ => Code::Unknown,
        };
        let said: String = text.trim().chars().take(200).collect();
        let message = match said.is_empty() {
            true => format!("{} answered {status}", self.url()),
            false => format!("{} answered {status}: {said}", self.url()),
        };
        Problem { status: status.as_u16(), ..Problem::new(Error::new(code, message), request_id) }
    }

    fn connection_failure(&self, error: &reqwest::Error) -> Failure {
        let causes = chain(error);
        let said = causes.join(": ");
        let hint = if said.contains("certificate") {
            Some("the certificate is not believed: give this controller's own authority with --ca ca.pem")
        } else if said.contains("InvalidContentType") || said.contains("corrupt message") {
            Some("this address does not speak TLS: is the port right? http:// works for this machine alone")
        } else {
            None
        };
        let unfixable = hint.is_some() || error.is_builder();
        let error =
            CliError::Unreachable { tried: vec![(self.url().to_string(), causes)], hint: hint.map(str::to_string) };
        if unfixable && self.urls.len() == 1 {
            return Failure::Final(error);
        }
        Failure::Again { error, after: None, elsewhere: true }
    }

    /// Sends the bytes of a file. It is sent once: the caller decides about a second time.
    pub async fn upload(&self, path: &str, length: u64, body: reqwest::Body) -> Result<Reply> {
        let request = self
            .request(Method::PUT, path, &[], JSON)
            .header("Idempotency-Key", Uuid::new_v4().to_string())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(reqwest::header::CONTENT_LENGTH, length)
            .body(body);
        self.execute(request).await.map_err(|failure| match failure {
            Failure::Final(error) | Failure::Again { error, .. } => error,
        })
    }
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|_| CliError::Config {
        message: "the token holds characters that no token has".into(),
        hint: "log in again: kring login --url URL --ca ca.pem --token-stdin".into(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn header(response: &reqwest::Response, name: &str) -> String {
    response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string()
}

/// The pause before the next attempt: what the server asked for, or twice the last one, each made a
/// little random so that many clients do not come back at once.
fn pause(attempt: usize, asked: Option<Duration>) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << (attempt - 1).min(16));
    let base = asked.unwrap_or(doubled).min(LONGEST_PAUSE);
    let random = u32::from(Uuid::new_v4().as_bytes()[0]);
    base / 2 + base / 2 * random / 255 + asked.map_or(Duration::ZERO, |_| base / 2)
}

/// An error with its sources, without repetitions.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source().or(Some(error));
    while let Some(error) = next {
        let text = error.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        next = error.source();
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_bounded_and_honour_the_server() {
        for attempt in 1..40 {
            assert!(pause(attempt, None) <= LONGEST_PAUSE);
        }
        assert!(pause(4, None) >= FIRST_PAUSE * 4);
        let asked = Duration::from_secs(3);
        assert!(pause(1, Some(asked)) >= asked);
        assert_eq!(pause(1, Some(Duration::ZERO)), Duration::ZERO);
    }
}
