//! A small client of the public API: typed bodies in, typed answers or the problem out.
//!
//! It repeats nothing by itself, so a test sees what the server did; only [`Client::wait_job`] bears a
//! server that is away for a while.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shared::api::host::{CreateJoinToken, JoinToken};
use shared::api::job::{Job, JobRef};
use shared::error::{Code, Problem};
use shared::id::JobId;
use tokio::time::Instant;

use crate::tls;

/// How long a job is waited for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Why a request did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The server refused.
    Refused(Box<Problem>),
    /// Something that is not of the API came back.
    Strange(u16, String),
    /// Nothing came back.
    Lost(reqwest::Error),
}

impl Failure {
    /// The code of a refusal; `unavailable` when nothing came back.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(problem) => problem.code,
            Self::Strange(..) => Code::Unknown,
            Self::Lost(_) => Code::Unavailable,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(problem) => write!(f, "{} {}: {}", problem.status, problem.code, problem.detail),
            Self::Strange(status, text) => write!(f, "{status}: {text}"),
            Self::Lost(error) => write!(f, "no answer: {error:?}"),
        }
    }
}

impl std::error::Error for Failure {}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The body; `null` when there is none or it is no JSON.
    pub json: Value,
    /// The body as text.
    pub text: String,
}

impl Reply {
    /// The body of a success.
    ///
    /// # Errors
    /// The refusal, or what is not of the API.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, Failure> {
        let strange = |text: String| Failure::Strange(self.status, text);
        if (200..300).contains(&self.status) {
            return serde_json::from_value(self.json).map_err(|e| strange(format!("{e} in {}", self.text)));
        }
        match serde_json::from_value(self.json) {
            Ok(problem) => Err(Failure::Refused(Box::new(problem))),
            Err(e) => Err(strange(format!("not a problem ({e}): {}", self.text))),
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    method: Method,
    path: &'a str,
    body: Option<Vec<u8>>,
    headers: HeaderMap,
}

impl<'a> Call<'a> {
    /// A request without a body.
    #[must_use]
    pub fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, body: None, headers: HeaderMap::new() }
    }

    /// Adds a JSON body.
    ///
    /// # Panics
    /// When the body cannot be written as JSON.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a body that cannot be written is a defect of the test")]
    pub fn json(self, body: &(impl Serialize + ?Sized)) -> Self {
        self.raw("application/json", serde_json::to_vec(body).expect("a body that is JSON"))
    }

    /// Adds a body of any kind.
    #[must_use]
    pub fn raw(mut self, kind: &'static str, body: Vec<u8>) -> Self {
        self.body = Some(body);
        self.headers.insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static(kind));
        self
    }

    /// Adds a header.
    ///
    /// # Panics
    /// When the value has characters that no header may have.
    #[must_use]
    #[expect(clippy::expect_used, reason = "such a header is a defect of the test")]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = value.parse().expect("a header's value");
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    /// Asks the server to wait for the work.
    #[must_use]
    pub fn wait(self, seconds: u32) -> Self {
        self.header("prefer", &format!("wait={seconds}"))
    }
}

/// Talks to one controller as one account.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// What `kring-controller init --cli-config` writes, as far as it is needed here.
#[derive(serde::Deserialize)]
struct CliConfig {
    current: Option<String>,
    contexts: std::collections::BTreeMap<String, CliContext>,
}

#[derive(serde::Deserialize)]
struct CliContext {
    urls: Vec<String>,
    ca: Option<std::path::PathBuf>,
    ca_pem: Option<String>,
    token: Option<String>,
}

impl Client {
    /// A client that trusts this certificate authority.
    ///
    /// # Errors
    /// When the authority cannot be read.
    pub fn new(url: &str, ca_pem: &str, token: Option<&str>) -> anyhow::Result<Self> {
        tls::install_provider();
        let http = reqwest::Client::builder()
            .tls_certs_only([Certificate::from_pem(ca_pem.as_bytes())?])
            .no_proxy()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(90))
            .build()?;
        Ok(Self { http, url: url.trim_end_matches('/').to_string(), token: token.map(str::to_string) })
    }

    /// A client for the controller that a `cli.toml` names, as whom it names.
    ///
    /// # Errors
    /// When the file cannot be read or names no controller.
    pub fn from_cli_config(path: &Path) -> anyhow::Result<Self> {
        let (url, ca, token) = Self::parts_of_cli_config(path)?;
        Self::new(&url, &ca, token.as_deref())
    }

    /// Address, certificate authority (PEM) and token that a `cli.toml` names.
    ///
    /// # Errors
    /// When the file cannot be read or names no controller.
    pub fn parts_of_cli_config(path: &Path) -> anyhow::Result<(String, String, Option<String>)> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut config: CliConfig = toml::from_str(&text)?;
        let name = config.current.or_else(|| config.contexts.keys().next().cloned()).unwrap_or_default();
        let chosen = config.contexts.remove(&name).with_context(|| format!("{} has no context", path.display()))?;
        let url = chosen.urls.first().context("the context has no address")?;
        let ca = match (&chosen.ca_pem, &chosen.ca) {
            (Some(pem), _) => pem.clone(),
            (None, Some(file)) => std::fs::read_to_string(path.parent().unwrap_or(Path::new(".")).join(file))?,
            (None, None) => anyhow::bail!("the context has no certificate authority"),
        };
        Ok((url.clone(), ca, chosen.token))
    }

    /// The same controller as somebody else; nobody when there is no token.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_string), ..self.clone() }
    }

    /// The address of the controller.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The bearer token.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// Only when nothing comes back.
    pub async fn send(&self, call: Call<'_>) -> Result<Reply, Failure> {
        let mut request = self.http.request(call.method, format!("{}{}", self.url, call.path)).headers(call.headers);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = call.body {
            request = request.body(body);
        }
        let answer = request.send().await.map_err(Failure::Lost)?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.map_err(Failure::Lost)?;
        Ok(Reply { status, headers, json: serde_json::from_str(&text).unwrap_or_default(), text })
    }

    /// `GET`
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Call::new(Method::GET, path)).await?.read()
    }

    /// `POST` with a body.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + ?Sized)) -> Result<T, Failure> {
        self.send(Call::new(Method::POST, path).json(body)).await?.read()
    }

    /// `PATCH` with a body.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + ?Sized)) -> Result<T, Failure> {
        self.send(Call::new(Method::PATCH, path).json(body)).await?.read()
    }

    /// `PUT` with a body.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + ?Sized)) -> Result<T, Failure> {
        self.send(Call::new(Method::PUT, path).json(body)).await?.read()
    }

    /// `DELETE`
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Call::new(Method::DELETE, path)).await?.read()
    }

    /// Waits until a job has ended, also over restarts of the server.
    ///
    /// # Errors
    /// When it has not ended in time, or the server refuses to tell.
    pub async fn wait_job(&self, id: JobId) -> anyhow::Result<Job> {
        let path = format!("/v1/jobs/{id}");
        let end = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < end {
            let answer = self.send(Call::new(Method::GET, &path).wait(10)).await;
            match answer.and_then(Reply::read::<Job>) {
                Ok(job) if job.state.is_final() => return Ok(job),
                Ok(job) => last = format!("{} is {} in {:?}", job.kind, job.state, job.step),
                Err(failure @ Failure::Lost(_)) => last = failure.to_string(),
                Err(failure) if failure.code().is_transient() => last = failure.to_string(),
                Err(failure) => return Err(failure).context(format!("waiting for job {id}")),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("job {id} has not ended in time: {last}")
    }

    /// Waits for a job that must succeed.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub async fn succeed(&self, job: &JobRef) -> anyhow::Result<Job> {
        let job = self.wait_job(job.job_id).await?;
        let error = job.error.as_ref().map(shared::Error::chain).unwrap_or_default();
        anyhow::ensure!(job.state.as_str() == "succeeded", "{} {}: {error}", job.kind, job.state);
        Ok(job)
    }

    /// Waits for a job that must fail, and gives its error's code.
    ///
    /// # Errors
    /// When it succeeds.
    pub async fn fail(&self, job: &JobRef) -> anyhow::Result<Code> {
        let job = self.wait_job(job.job_id).await?;
        anyhow::ensure!(job.state.as_str() != "succeeded", "{} succeeded", job.kind);
        Ok(job.error.with_context(|| format!("{} {} without an error", job.kind, job.state))?.code)
    }

    /// A token for one host to join.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn join_token(&self) -> Result<JoinToken, Failure> {
        self.post("/v1/join_tokens", &CreateJoinToken::default()).await
    }
}
