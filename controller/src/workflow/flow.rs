//! What a flow is: an ordered list of steps, built by a pure function from the command.
//!
//! ```text
//! step:   apply (I/O on hosts) ──▶ record (one transaction, with the journal)
//! undo:   undo  (I/O on hosts) ──▶ unrecord (one transaction, with the journal)
//! ```
//!
//! The first step is recorded when the job is accepted, so it may not apply anything; it writes the
//! intent. When a step fails, its own undo runs first (it may have half happened), then that of each
//! step before it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::host::HostConnection;
use shared::id::{AccountId, ControllerId, HostId, JobId, TaskId};
use shared::time::Timestamp;
use shared::wire::AgentCommand;
use shared::{Code, Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::agent_client::{HostRef, Order, Progress};
use crate::cx::Trace;
use crate::db::{self, Tx};
use crate::deps::Deps;

/// A kind of job.
pub trait Flow: Send + Sync + 'static {
    /// Its name, `<noun>.<verb>`; kept in the rows of its jobs.
    const KIND: &'static str;
    /// Noun of the resource that it works on.
    const NOUN: &'static str;
    /// How long a job may take before it is rolled back.
    const TIMEOUT: Duration = Duration::from_secs(30 * 60);

    /// The command and what the steps find on the way. Kept in the journal: a field that is added
    /// later needs a default.
    type State: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

    /// The resource: jobs about one resource run one at a time.
    fn resource(state: &Self::State) -> Uuid;

    /// The steps. A pure function of the command: after a crash it must give the same steps again.
    fn steps(state: &Self::State) -> Vec<Arc<dyn Step<Self::State>>>;
}

/// A step. All four parts may be run twice, `undo` and `unrecord` also when the step has not happened.
#[async_trait]
pub trait Step<S: Send + Sync + 'static>: Send + Sync {
    /// Its name, unique in its flow.
    fn name(&self) -> &'static str;

    /// Does the work outside of the database. Must not record anything.
    async fn apply(&self, _cx: &StepCx, _state: &mut S) -> Result<()> {
        Ok(())
    }

    /// Writes down what was done, in the transaction that journals the step.
    async fn record(&self, _tx: &mut Tx, _at: &At, _state: &mut S) -> db::Result<()> {
        Ok(())
    }

    /// Whether the work of this step cannot be taken back (data is removed). When such a step fails, the
    /// job goes on, and `apply` is owed: it is tried as clean-up until it succeeds. It must find what it
    /// needs in the state, since the rows may be gone by then.
    fn owed_when_failing(&self) -> bool {
        false
    }

    /// Takes the work back.
    async fn undo(&self, _cx: &StepCx, _state: &S) -> Result<()> {
        Ok(())
    }

    /// Takes back what was written, in the transaction that journals the undoing.
    async fn unrecord(&self, _tx: &mut Tx, _at: &At, _state: &S) -> db::Result<()> {
        Ok(())
    }
}

/// A point that a job passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Before a step is applied.
    BeforeApply,
    /// After a step is applied, before it is recorded.
    AfterApply,
    /// Before a step is undone.
    BeforeUndo,
    /// After a step is undone, before that is recorded.
    AfterUndo,
}

/// Watches jobs pass, and may hold or fail them: how the tests inject failures and crashes at every
/// step of every flow.
#[async_trait]
pub trait Probe: Send + Sync {
    /// A job passes `point` of `step`. An error fails the step there; never returning is a crash.
    async fn pass(&self, job: JobId, kind: &'static str, step: &'static str, point: Point) -> Result<()>;
}

/// For whom and when a step runs.
#[derive(Clone, Debug)]
pub struct At {
    /// The job.
    pub job_id: JobId,
    /// Who asked for it.
    pub account_id: AccountId,
    /// The request that asked for it.
    pub request_id: Arc<str>,
    /// The trace that it is a part of.
    pub trace: Trace,
    /// The time.
    pub now: Timestamp,
    /// Ring generation under which it runs.
    pub generation: u64,
    /// The controller that runs it.
    pub controller_id: ControllerId,
}

/// What a step may use outside of a transaction.
pub struct StepCx {
    /// For whom and when.
    pub at: At,
    /// Database, agents, settings, clock.
    pub deps: Arc<Deps>,
    /// When this must have ended.
    pub deadline: Instant,
    /// Fires when the job is cancelled.
    pub cancel: CancellationToken,
    /// What the job works on.
    pub(super) resource: Uuid,
    pub(super) step: &'static str,
    pub(super) undoing: bool,
    pub(super) attempt: u32,
    pub(super) share: (u8, u8),
    pub(super) leave: CancellationToken,
    pub(super) progress_written: AtomicI64,
}

impl Deref for StepCx {
    type Target = At;
    fn deref(&self) -> &At {
        &self.at
    }
}

impl StepCx {
    /// Id of the `n`th command of this step. It is the same after a crash, so an agent that has the
    /// command already does not run it twice.
    #[must_use]
    pub fn task_id(&self, n: u32) -> TaskId {
        let text = format!("{}/{}/{}/{}/{n}", self.at.job_id, self.step, self.undoing, self.attempt);
        TaskId::from_uuid(uuid::Builder::from_random_bytes(xxh3_128(text.as_bytes()).to_le_bytes()).into_uuid())
    }

    /// Has a host carry out the `n`th command of this step, and waits for the outcome.
    pub async fn command<C: AgentCommand>(&self, host: HostId, n: u32, command: &C) -> Result<C::Reply> {
        let reach = self.deps.db.reaches.get(host).await?.ok_or_else(|| Error::not_found("host", host))?;
        if reach.connection == HostConnection::Disconnected {
            let text = format!("host {host} is disconnected: see `kring host show {host}`");
            return Err(Error::new(Code::HostUnreachable, text));
        }
        // What is about the job's own resource is given one after the other, and must be done so: what was held
        // up on its way must not undo what was done since. Others' resources (images) are anybody's to command.
        let sequence = (command.resource() == self.resource).then(|| self.deps.agents.next_sequence());
        let order = Order {
            task_id: self.task_id(n),
            generation: self.at.generation,
            agent_id: reach.agent_id,
            sequence,
            deadline: self.deadline,
            leave: self.leave.clone(),
        };
        self.deps.agents.command(&HostRef { id: host, address: reach.address }, order, command, self).await
    }

    /// Tells how far this step is, 0 to 100. Written down at most once a second.
    pub async fn progress(&self, percent: u8) {
        let now = self.deps.clock.now().ms();
        if now - self.progress_written.swap(now, Relaxed) < 1000 {
            return;
        }
        let (from, to) = self.share;
        let total = from + ((u32::from(to.saturating_sub(from)) * u32::from(percent.min(100))) / 100) as u8;
        let id = self.at.job_id;
        let written =
            self.deps.db.write(move |tx| Box::pin(async move { db::job::set_progress(tx, id, total).await })).await;
        if let Err(error) = written {
            tracing::warn!(job.id = %id, %error, "the progress of a job could not be written");
        }
    }
}

impl Progress for StepCx {
    fn told(&self, percent: u8) -> BoxFuture<'_, ()> {
        Box::pin(self.progress(percent))
    }
}
