//! What a simulated host tells and asks the controllers: events, reports, certificates, images.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::{Method, StatusCode};
use shared::id::ImageId;
use shared::units::Bytes;
use shared::wire::TaskReport;
use shared::wire::event::{AgentEvent, AgentEvents};
use shared::wire::host::{Join, Joined, Renew};
use shared::wire::image::{ImageInfo, ImageOrigin, ImageSpec};
use shared::{Code, Error, Result};

use super::super::tls::Identity;
use super::super::{outbound, sha256_hex, tls};
use super::{Host, lock};

/// How often a callback or a batch of events is tried.
const TRIES: u32 = 8;
/// The first wait between two tries; each is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Events in one request.
const BATCH: usize = 256;

impl Host {
    /// Puts an event into the queue and sees that it is sent.
    pub(crate) fn push(self: &Arc<Self>, event: AgentEvent) {
        if self.silent.load(Relaxed) || self.shared.stop.is_cancelled() {
            return;
        }
        lock(&self.events).push_back(event);
        if !self.sending.swap(true, Relaxed) {
            let (host, stop) = (Arc::clone(self), self.shared.stop.clone());
            self.spawn(async move {
                stop.run_until_cancelled(host.send_events()).await;
            });
        }
    }

    async fn send_events(&self) {
        loop {
            let events: Vec<_> = {
                let mut waiting = lock(&self.events);
                if waiting.is_empty() {
                    // Under the lock: whoever pushes next sees that nobody sends any more.
                    self.sending.store(false, Relaxed);
                    return;
                }
                let n = waiting.len().min(BATCH);
                waiting.drain(..n).collect()
            };
            let batch = AgentEvents { host_id: self.id, events };
            self.post(None, "/agent/v1/events", &batch).await;
        }
    }

    /// Takes over where controllers say that they are.
    pub(crate) fn tell(&self, list: Vec<String>) {
        if !list.is_empty() {
            *lock(&self.controllers) = list;
        }
    }

    /// The controllers that this host knows.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        lock(&self.controllers).clone()
    }

    /// Sends a request to one controller after the other, `first` first, until one takes it.
    ///
    /// # Errors
    /// When none of them is reached.
    async fn ask_any(
        &self,
        method: Method,
        first: Option<&str>,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<outbound::Answer> {
        let configured = self.shared.controller();
        let mut bases = vec![first.unwrap_or(&configured).to_string(), configured];
        bases.extend(self.controllers());
        let mut tried: Vec<String> = Vec::new();
        let mut last = Err(anyhow::anyhow!("there is no controller"));
        for base in bases {
            if tried.contains(&base) {
                continue;
            }
            last = Box::pin(self.ask(method.clone(), &format!("{base}{path}"), body.to_vec())).await;
            match &last {
                // One that does not have it says nothing of the others.
                Ok(answer) if answer.status == StatusCode::NOT_FOUND && method == Method::GET => {
                    tried.push(base);
                    continue;
                }
                Ok(answer) if !answer.status.is_server_error() => break,
                Ok(_) => {}
                Err(error) => tracing::debug!(host.id = %self.id, error = format!("{error:#}"), "not reached"),
            }
            self.shared.turn_away(&base);
            tried.push(base);
        }
        last
    }

    /// Posts to the controllers, again when none is reached, and gives up after a while.
    async fn post(&self, first: Option<&str>, path: &str, body: &impl serde::Serialize) {
        let Ok(body) = serde_json::to_vec(body) else { return };
        let mut wait = FIRST_WAIT;
        for _ in 0..TRIES {
            self.thawed().await;
            match self.ask_any(Method::POST, first, path, &body).await {
                Ok(answer) if !answer.status.is_server_error() => return,
                _ => tokio::time::sleep(wait).await,
            }
            wait *= 2;
        }
    }

    /// Posts the state of a task to its callback, or to another controller when nothing answers there.
    pub(crate) async fn report(&self, callback: &str, report: &TaskReport) {
        let split = callback.find("/agent/").unwrap_or(callback.len());
        let (base, path) = callback.split_at(split);
        self.post(Some(base), path, report).await;
    }

    /// Sends a request to the controller with this host's certificate.
    ///
    /// # Errors
    /// When the controller is not reached.
    pub async fn ask(&self, method: Method, url: &str, body: Vec<u8>) -> anyhow::Result<outbound::Answer> {
        let tls = tls::with_identity(self.shared.client(), &self.identity());
        outbound::send(&tls, method, url, body).await
    }

    /// Asks for a new certificate and uses it from then on.
    ///
    /// # Errors
    /// When the controller refuses, or its answer does not fit.
    pub async fn renew(&self) -> anyhow::Result<()> {
        let (key, csr) = tls::key_and_request()?;
        let body = serde_json::to_vec(&Renew { csr })?;
        let joined = self.ask_any(Method::POST, None, "/agent/v1/renew", &body).await?;
        self.take(joined.read()?, &key)
    }

    /// Joins once more with a one-time token, as the same host: what an operator does when its certificate
    /// has expired.
    ///
    /// # Errors
    /// When the controller refuses, or its answer does not fit.
    pub async fn join_again(&self, token: &str) -> anyhow::Result<()> {
        let (key, csr) = tls::key_and_request()?;
        let join = Join {
            token: token.to_string(),
            name: self.name.clone(),
            csr,
            port: self.address.port(),
            address: Some(self.address.ip().to_string()),
            host_id: Some(self.id),
            facts: self.facts(),
        };
        let url = format!("{}/agent/v1/join", self.shared.controller());
        let client = Arc::new(tls::join_config(tls::fingerprint_of_token(token)?)?);
        let answer = outbound::send(&client, Method::POST, &url, serde_json::to_vec(&join)?).await?;
        self.take(answer.read()?, &key)
    }

    /// Uses a new certificate from now on.
    fn take(&self, joined: Joined, key: &str) -> anyhow::Result<()> {
        let identity = Identity::new(joined.host_id, &joined.certificate, joined.ca.into(), key)?;
        anyhow::ensure!(identity.host_id == self.id, "the new certificate is for another host");
        *lock(&self.identity) = self.shared.adopt(identity);
        Ok(())
    }

    /// What an image turns out to be: an upload is fetched from the controller, a URL is looked up in
    /// the simulator's table.
    pub(crate) async fn fetch(&self, spec: &ImageSpec) -> Result<ImageInfo> {
        match &spec.origin {
            ImageOrigin::Url { url } => self.shared.image(url),
            ImageOrigin::Controller => self.fetch_upload(spec.image_id).await,
        }
    }

    async fn fetch_upload(&self, id: ImageId) -> Result<ImageInfo> {
        let path = format!("/agent/v1/images/{id}/content");
        let failed = |text: String| Error::new(Code::DownloadFailed, text);
        let answer = self.ask_any(Method::GET, None, &path, &[]).await.map_err(|e| failed(format!("{e:#}")))?;
        if !answer.status.is_success() {
            return Err(failed(format!("the controller answered {}", answer.status)));
        }
        let size = answer.body.len() as u64;
        let head = &answer.body[..answer.body.len().min(shared::image_header::HEAD_LEN)];
        let header = shared::image_header::inspect(head, size)?;
        Ok(ImageInfo {
            format: header.format,
            sha256: sha256_hex(&answer.body),
            size: Bytes(size),
            virtual_size: Bytes(header.virtual_size),
        })
    }
}
