//! A client that knows all controllers, as a user's does: it sends each request to the one that answered
//! last, and on to the next one when nothing comes back. Everything that changes something carries an
//! idempotency key, so that it is done once however often it is sent.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use reqwest::Method;
use serde_json::Value;
use shared::api::job::{Job, JobRef};
use shared::error::Code;
use shared::id::JobId;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::client::{Call, Client, Failure, Reply};

/// How long one controller is given.
const ATTEMPT: Duration = Duration::from_secs(12);
/// What it is told of that, in seconds: it answers before it is given up.
const TOLD: &str = "10";
/// How long a request is sent again.
const PATIENCE: Duration = Duration::from_secs(100);

/// One request, with all its attempts.
#[derive(Clone, Debug)]
pub struct Called {
    /// Method and path.
    pub what: String,
    /// What came back of the attempts that failed, with the controller; refused connections left out.
    pub failures: Vec<(usize, String)>,
    /// The last answer: the code of a refusal, or nothing when it succeeded.
    pub refused: Option<Code>,
    /// The jobs that were accepted: all attempts must name the same one.
    pub jobs: Vec<JobId>,
}

/// All controllers, seen by a user.
pub struct Api {
    clients: Vec<Client>,
    at: AtomicUsize,
    history: Mutex<Vec<Called>>,
}

impl Api {
    /// One user of these controllers.
    #[must_use]
    pub fn new(clients: Vec<Client>) -> Self {
        Self { clients, at: AtomicUsize::new(0), history: Mutex::default() }
    }

    /// Everything that changed something, so far.
    #[must_use]
    pub fn history(&self) -> Vec<Called> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what was done so far.
    pub fn forget(&self) {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Sends a request until some controller has answered it for good.
    ///
    /// # Errors
    /// When nobody does in time.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Reply, Failure> {
        self.send_by(self.at.load(Relaxed), method, path, body).await
    }

    /// The same, asking this controller first.
    ///
    /// # Errors
    /// When nobody answers in time.
    pub async fn send_by(
        &self,
        first: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, Failure> {
        let key = Uuid::now_v7().to_string();
        let end = Instant::now() + PATIENCE;
        let mut called =
            Called { what: format!("{method} {path}"), failures: Vec::new(), refused: None, jobs: Vec::new() };
        let mut at = first % self.clients.len();
        let result = loop {
            let result = self.attempt(at, &method, path, body, &key).await;
            let again = match &result {
                Ok(reply) => note(&mut called, at, reply),
                Err(Failure::Lost(error)) if error.is_connect() => true,
                Err(failure) => {
                    called.failures.push((at, failure.to_string()));
                    true
                }
            };
            if !again || Instant::now() > end {
                break result;
            }
            at = (at + 1) % self.clients.len();
            self.at.store(at, Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        if !method.is_safe() {
            self.history.lock().unwrap_or_else(PoisonError::into_inner).push(called);
        }
        result
    }

    async fn attempt(
        &self,
        at: usize,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        key: &str,
    ) -> Result<Reply, Failure> {
        let mut call = Call::new(method.clone(), path).header("x-kring-timeout", TOLD);
        if !method.is_safe() {
            call = call.header("idempotency-key", key);
        }
        if let Some(body) = body {
            call = call.json(body);
        }
        let answer = timeout(ATTEMPT, self.clients[at].send(call)).await;
        answer.unwrap_or_else(|_| Err(Failure::Strange(0, format!("no answer within {ATTEMPT:?}"))))
    }

    /// Sends a request that must be accepted as a job.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn accepted(&self, method: Method, path: &str, body: Option<&Value>) -> Result<JobRef, Failure> {
        self.send(method, path, body).await?.read()
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// When it has not in time, or is not known.
    pub async fn wait_job(&self, id: JobId) -> anyhow::Result<Job> {
        let path = format!("/v1/jobs/{id}");
        let end = Instant::now() + PATIENCE;
        loop {
            let job: Job = self.send(Method::GET, &path, None).await?.read().with_context(|| format!("job {id}"))?;
            if job.state.is_final() {
                return Ok(job);
            }
            anyhow::ensure!(
                Instant::now() < end,
                "{} {id} has not ended: it is {} in {:?}",
                job.kind,
                job.state,
                job.step
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Writes down what came back, and says whether the request is to be sent again.
fn note(called: &mut Called, at: usize, reply: &Reply) -> bool {
    if let Ok(job) = reply.clone().read::<JobRef>() {
        called.jobs.push(job.job_id);
    }
    let Err(failure) = reply.clone().read::<Value>() else { return false };
    let code = failure.code();
    let again = code.is_transient() || code == Code::DeadlineExceeded;
    if again {
        called.failures.push((at, failure.to_string()));
    } else {
        called.refused = Some(code);
    }
    // What no user should ever see is kept with its text.
    if matches!(code, Code::Internal | Code::Unknown) {
        called.failures.push((at, failure.to_string()));
    }
    again
}
