//! What users do while a fleet is under fault: they make VMs, stop, start and delete them, and look.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use shared::api::job::{Job, JobState};
use shared::api::vm::CreateVm;
use shared::error::Code;
use shared::id::{JobId, VmId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Api, Fleet};

/// Users at work. Dropping it leaves them to end by themselves.
pub struct Load {
    stop: CancellationToken,
    tasks: TaskTracker,
    seen: Arc<Seen>,
}

/// What the users saw.
#[derive(Default)]
struct Seen {
    jobs: Mutex<Vec<JobId>>,
    problems: Mutex<Vec<String>>,
}

struct User {
    api: Arc<Api>,
    body: CreateVm,
    may: &'static [Code],
    random: StdRng,
    name: String,
    seen: Arc<Seen>,
}

impl Load {
    /// This many users begin; what they do follows from the seed.
    #[must_use]
    pub fn start(fleet: &Fleet, users: u64, seed: u64) -> Self {
        let body = fleet.vm_body(&fleet.image, &fleet.network);
        Self::start_with(&fleet.api, &body, &[], users, seed)
    }

    /// The same, through this API, with VMs like this one. They may be refused with these codes, beside those
    /// that users always may be told.
    #[must_use]
    pub fn start_with(api: &Arc<Api>, body: &CreateVm, may: &'static [Code], users: u64, seed: u64) -> Self {
        let load = Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), seen: Arc::default() };
        for n in 0..users {
            let mut user = User {
                api: Arc::clone(api),
                body: body.clone(),
                may,
                random: StdRng::seed_from_u64(seed ^ (n + 1).rotate_left(40)),
                name: format!("u{n}-{seed}"),
                seen: Arc::clone(&load.seen),
            };
            let stop = load.stop.clone();
            load.tasks.spawn(async move {
                let mut turn = 0;
                while !stop.is_cancelled() {
                    turn += 1;
                    if let Err(error) = user.turn(turn, &stop).await {
                        user.seen.problem(format!("{}: {error:#}", user.name));
                    }
                }
            });
        }
        load
    }

    /// How many jobs were accepted and have ended, as the users saw it.
    #[must_use]
    pub fn done(&self) -> usize {
        self.seen.jobs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lets every user end what it is doing, and gives what went wrong for them.
    pub async fn end(self) -> Vec<String> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        std::mem::take(&mut *self.seen.problems.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Seen {
    fn problem(&self, text: String) {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

impl User {
    /// The life of one VM, or a part of it.
    async fn turn(&mut self, turn: u32, stop: &CancellationToken) -> anyhow::Result<()> {
        let id = VmId::new();
        let body = CreateVm { id: Some(id), name: format!("{}-{turn}", self.name).parse()?, ..self.body.clone() };
        let Some(made) = self.job(Method::POST, "/v1/vms", Some(serde_json::to_value(&body)?)).await? else {
            return Ok(());
        };
        self.api.send(Method::GET, "/v1/vms?limit=5", None).await?.read::<Value>()?;
        if made.state != JobState::Succeeded {
            return Ok(());
        }
        for _ in 0..self.random.random_range(0..3) {
            if stop.is_cancelled() {
                return Ok(());
            }
            let verb = ["stop", "start", "reboot"][self.random.random_range(0..3)];
            self.job(Method::POST, &format!("/v1/vms/{id}/{verb}"), Some(json!({}))).await?;
        }
        if self.random.random_bool(0.6) {
            self.job(Method::DELETE, &format!("/v1/vms/{id}"), None).await?;
            self.job(Method::POST, &format!("/v1/vms/{id}/expunge"), Some(json!({}))).await?;
        }
        Ok(())
    }

    /// Sends something that becomes a job, and waits for its end. Nothing when it was refused, with reason.
    async fn job(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Option<Job>> {
        let job = match self.api.accepted(method, path, body.as_ref()).await {
            Ok(job) => job,
            Err(failure) => match failure.code() {
                // What a user may be told while hosts come and go.
                Code::InvalidState | Code::Conflict | Code::NotFound | Code::NoHostFits => return Ok(None),
                code if self.may.contains(&code) => return Ok(None),
                _ => anyhow::bail!("{path}: {failure}"),
            },
        };
        let ended = self.api.wait_job(job.job_id).await?;
        self.seen.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job.job_id);
        if let Some(error) = ended.error.as_ref().filter(|error| error.code == Code::Internal) {
            anyhow::bail!(
                "{} {} ended with an error of the controller's own: {} ({:?})",
                ended.kind,
                ended.id,
                error.chain(),
                error.detail
            );
        }
        Ok(Some(ended))
    }
}
