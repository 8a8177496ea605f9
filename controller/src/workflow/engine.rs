//! The engine: accepts jobs durably, runs each in the lane of its resource, finds them again after a
//! crash.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use shared::api::job::{JobRef, JobResource, JobState};
use shared::id::{AccountId, JobId};
use shared::{Code, Error, Result};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::course::{Look, look, must_claim};
use super::flow::{At, Flow, Probe};
use super::run::{Runner, backoff};
use crate::bus::Queues;
use crate::cx::Cx;
use crate::db::job::JobRow;
use crate::db::{self, cleanup::Cleanup};
use crate::deps::Deps;

/// A flow whose state type is known by its kind only.
pub(super) trait AnyFlow: Send + Sync {
    fn run<'a>(&'a self, runner: &'a Runner, row: JobRow) -> BoxFuture<'a, Result<()>>;
    fn clean_up<'a>(&'a self, deps: &'a Arc<Deps>, owed: Cleanup) -> BoxFuture<'a, Result<()>>;
}

pub(super) struct FlowOf<F>(pub(super) PhantomData<fn() -> F>);

/// The flows that this controller can run, by kind.
#[derive(Default)]
pub struct Flows(pub(super) HashMap<&'static str, Box<dyn AnyFlow>>);

impl Flows {
    /// Adds a flow. Two of one kind are a defect, found at start.
    pub fn register<F: Flow>(&mut self) {
        let before = self.0.insert(F::KIND, Box::new(FlowOf::<F>(PhantomData)));
        assert!(before.is_none(), "two flows named {}", F::KIND);
    }

    /// The kinds, sorted.
    #[must_use]
    pub fn kinds(&self) -> Vec<&'static str> {
        let mut kinds: Vec<_> = self.0.keys().copied().collect();
        kinds.sort_unstable();
        kinds
    }
}

/// Counts the jobs that ended here.
pub(super) const JOBS_ENDED: &str = "kring_jobs_ended_total";

/// Jobs that may wait for one resource.
const LANE: usize = 64;

/// The workflow engine of one controller.
pub struct Engine {
    pub(super) deps: Arc<Deps>,
    pub(super) flows: Flows,
    lanes: Arc<Queues>,
    /// Jobs that are in a lane here.
    here: Mutex<HashMap<JobId, Here>>,
    waiters: Mutex<HashMap<JobId, Vec<oneshot::Sender<()>>>>,
    pub(super) stop: CancellationToken,
    probe: OnceLock<Arc<dyn Probe>>,
    on_release: OnceLock<Box<dyn Fn(JobId, Uuid) + Send + Sync>>,
}

/// A job that is in a lane here.
#[derive(Clone)]
struct Here {
    resource: Uuid,
    /// Fires when a user wants it to stop.
    cancel: CancellationToken,
    /// Fires when it goes on elsewhere, or at the next start.
    leave: CancellationToken,
    /// It was to be put here once more while it was here: on its way out it is looked at again.
    again: Arc<AtomicBool>,
}

/// A job that somebody watches, for as long as this exists.
pub struct Watched {
    engine: Arc<Engine>,
    id: JobId,
    woken: oneshot::Receiver<()>,
}

impl Watched {
    /// Resolves when the job has left its lane here.
    pub async fn left_its_lane(&mut self) {
        // The sender goes when it has woken this.
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.woken.close();
        let mut waiters = self.engine.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_job) = waiters.get_mut(&self.id) {
            of_job.retain(|waiter| !waiter.is_closed());
            if of_job.is_empty() {
                waiters.remove(&self.id);
            }
        }
    }
}

impl Engine {
    /// An engine that runs `flows`; its tasks are owned by `tasks` and end at `stop`.
    #[must_use]
    pub fn new(deps: Arc<Deps>, flows: Flows, tasks: &TaskTracker, stop: CancellationToken) -> Arc<Self> {
        let lanes = Queues::new(LANE, tasks.clone());
        // Known from the start: what appears with its first failure is no rise for who watches.
        for kind in flows.kinds() {
            for state in [JobState::Succeeded, JobState::Failed, JobState::Cancelled] {
                deps.metrics.count(JOBS_ENDED, &[("kind", kind), ("state", state.as_str())], 0);
            }
        }
        Arc::new(Self {
            deps,
            flows,
            lanes,
            here: Mutex::default(),
            waiters: Mutex::default(),
            stop,
            probe: OnceLock::new(),
            on_release: OnceLock::new(),
        })
    }

    /// Lets `tell` know of each job that was let go of because its resource belongs to another
    /// controller now.
    pub fn on_release(&self, tell: impl Fn(JobId, Uuid) + Send + Sync + 'static) {
        // A second one would be a defect of the start-up; the first one stays.
        let _ = self.on_release.set(Box::new(tell));
    }

    /// Lets a test watch every job pass; the first probe stays.
    pub fn set_probe(&self, probe: Arc<dyn Probe>) {
        let _ = self.probe.set(probe);
    }

    /// The flows that this engine can run, by kind, sorted.
    #[must_use]
    pub fn kinds(&self) -> Vec<&'static str> {
        self.flows.kinds()
    }

    /// Accepts a job: when this answers, the job is durable and will be done or rolled back. A
    /// repetition under the same idempotency key answers the first job; a dry run checks what can be
    /// checked now and accepts nothing.
    pub async fn submit<F: Flow>(self: &Arc<Self>, cx: &Cx, account: AccountId, state: F::State) -> Result<JobRef> {
        let at = At {
            job_id: JobId::new(),
            account_id: account,
            request_id: Arc::clone(&cx.request_id),
            trace: cx.trace,
            now: self.deps.clock.now(),
            generation: self.deps.ring.generation(),
            controller_id: self.deps.ring.me(),
        };
        let key = cx.idempotency.clone();
        let caller = cx.caller.account().unwrap_or(account);
        let dry_run = cx.dry_run;
        let resource = JobResource { kind: F::NOUN.to_string(), id: F::resource(&state) };
        let reply = JobRef { job_id: at.job_id, resource };
        let (answer, mut planned) = oneshot::channel();
        let written = self.deps.db.write(move |tx| {
            Box::pin(async move {
                if let Some(key) = &key
                    && let Some(first) = db::idempotency::claim(tx, caller, key, &reply, at.now).await?
                {
                    return Ok((first, None));
                }
                let row = accept::<F>(tx, &at, state).await?;
                if dry_run {
                    // Refusing rolls back; the caller takes the reply from beside.
                    let _ = answer.send(reply);
                    return Err(Error::new(Code::Cancelled, "a dry run changes nothing").into());
                }
                Ok((reply, Some(row)))
            })
        });
        match written.await {
            Err(_) if dry_run && let Ok(reply) = planned.try_recv() => Ok(reply),
            Err(error) => Err(error.into()),
            Ok((reply, row)) => {
                self.enqueue_as(reply.job_id, reply.resource.id, row);
                Ok(reply)
            }
        }
    }

    /// Puts a job into the lane of its resource, unless it is there already.
    pub fn enqueue(self: &Arc<Self>, id: JobId, resource: Uuid) {
        self.enqueue_as(id, resource, None);
    }

    /// The same, with its row when that was just written.
    fn enqueue_as(self: &Arc<Self>, id: JobId, resource: Uuid, row: Option<JobRow>) {
        let (cancel, leave, again) = (CancellationToken::new(), self.stop.child_token(), Arc::default());
        let job = Here { resource, cancel, leave, again };
        {
            let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(there) = here.get(&id) {
                there.again.store(true, Relaxed);
                return;
            }
            here.insert(id, job.clone());
        }
        let engine = Arc::clone(self);
        let pushed = self.lanes.push(resource, async move {
            if AssertUnwindSafe(engine.run(id, &job, row)).catch_unwind().await.is_err() {
                tracing::error!(job.id = %id, resource.id = %resource, "running a job panicked; it is left for later");
            }
            engine.here.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            engine.wake(id);
            // It may have come back while it was on its way out, or the word that it is free came too early.
            let again = job.leave.is_cancelled() || job.again.load(Relaxed);
            if again && !engine.stop.is_cancelled() && engine.deps.ring.is_mine(resource) {
                engine.enqueue(id, resource);
            }
        });
        if pushed.is_err() {
            // It is durable: the recovery sweep finds it when the lane has room.
            self.here.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            tracing::warn!(job.id = %id, resource.id = %resource, "many jobs wait for one resource; this one is taken up later");
        }
    }

    /// Takes up every job that has not ended and whose resource is owned here. Called at start, at
    /// each new generation, and now and then.
    pub async fn recover(self: &Arc<Self>) -> Result<usize> {
        let mut after = None;
        let mut taken = 0;
        loop {
            let page = {
                let mut conn = self.deps.db.read().await?;
                db::job::open_after(&mut conn, after, 1000).await?
            };
            let Some(last) = page.last() else { return Ok(taken) };
            after = Some(last.id);
            for job in page {
                let (owned, here) = (self.deps.ring.is_mine(job.resource), self.is_here(job.id));
                match look(job.controller_id, self.deps.ring.me(), owned, here) {
                    Look::TakeUp => {
                        taken += 1;
                        self.enqueue(job.id, job.resource);
                    }
                    Look::LetGo => self.release(job.id, job.resource).await,
                    Look::Nothing => {}
                }
                if job.cancel_requested {
                    // The message that says so may have been lost, or come before the job was here.
                    self.stop_here(job.id);
                }
            }
        }
    }

    /// Writes down that a job shall stop and undo what it has done. Its owner is to be told as well
    /// ([`Engine::stop_here`]).
    ///
    /// # Errors
    /// `invalid_state` when it has ended.
    pub async fn request_cancel(&self, id: JobId) -> Result<()> {
        let open = self.deps.db.write(move |tx| Box::pin(async move { db::job::request_cancel(tx, id).await })).await?;
        match open {
            true => Ok(()),
            false => Err(Error::new(Code::InvalidState, format!("job {id} has ended already"))),
        }
    }

    /// Stops a job that is in a lane here; any other is not touched.
    pub fn stop_here(&self, id: JobId) {
        if let Some(job) = self.here.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            job.cancel.cancel();
        }
    }

    /// Resolves when the job has left its lane here. Ask the database afterwards: the wake-up says
    /// that something happened, not what.
    #[must_use]
    pub fn watch(self: &Arc<Self>, id: JobId) -> Watched {
        let (wake, woken) = oneshot::channel();
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().push(wake);
        Watched { engine: Arc::clone(self), id, woken }
    }

    /// Leaves every job whose resource belongs to another controller now. Each stops where it is, is let
    /// go of, and goes on there.
    pub fn let_go(&self) {
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        here.values().filter(|job| !self.deps.ring.is_mine(job.resource)).for_each(|job| job.leave.cancel());
    }

    /// How many jobs somebody watches.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn is_here(&self, id: JobId) -> bool {
        self.here.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    /// How many jobs are in a lane here.
    #[must_use]
    pub fn in_lanes(&self) -> usize {
        self.here.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Wakes those who wait for a job.
    pub fn wake(&self, id: JobId) {
        let waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        for waiter in waiters.into_iter().flatten() {
            // Nobody waits any more when this fails.
            let _ = waiter.send(());
        }
    }

    /// The job, when it is to be run here. One that was not accepted here, or under an older generation,
    /// is claimed first, so that nobody else writes to it after it was read.
    async fn take(&self, id: JobId, accepted: Option<JobRow>) -> Result<Option<JobRow>> {
        let row = match accepted {
            Some(row) => Some(row),
            None => self.deps.db.jobs.get(id).await?,
        };
        let Some(row) = row else { return Ok(None) };
        if row.job.state.is_final() || !self.deps.ring.is_mine(row.job.resource.id) || self.stop.is_cancelled() {
            return Ok(None);
        }
        let (me, generation) = (self.deps.ring.me(), self.deps.ring.generation());
        if !must_claim(row.generation, row.controller_id, me, generation) {
            return Ok(Some(row));
        }
        let claimed =
            self.deps.db.write(move |tx| Box::pin(async move { db::job::claim(tx, id, me, generation).await })).await?;
        if claimed.is_none() {
            tracing::debug!(job.id = %id, "a job is still with another controller, which will let go of it");
        }
        Ok(claimed)
    }

    /// The same, again and again while the database is away.
    async fn take_in_time(
        &self,
        id: JobId,
        mut accepted: Option<JobRow>,
        leave: &CancellationToken,
    ) -> Result<Option<JobRow>> {
        let mut attempt = 0;
        loop {
            match db::soon(self.take(id, accepted.take())).await {
                Err(error) if error.code.is_transient() => {
                    tracing::debug!(job.id = %id, error = error.chain(), attempt, "a job could not be read; trying again");
                    attempt += 1;
                    if leave.run_until_cancelled(tokio::time::sleep(backoff(attempt))).await.is_none() {
                        return Ok(None);
                    }
                }
                taken => return taken,
            }
        }
    }

    async fn run(self: &Arc<Self>, id: JobId, here: &Here, accepted: Option<JobRow>) {
        let runner = Runner {
            deps: Arc::clone(&self.deps),
            cancel: here.cancel.clone(),
            leave: here.leave.clone(),
            probe: self.probe.get().cloned(),
        };
        let done = async {
            let Some(row) = self.take_in_time(id, accepted, &runner.leave).await? else { return Ok(()) };
            let flow = self.flows.0.get(row.job.kind.as_str()).ok_or_else(|| {
                Error::internal(format_args!(
                    "this controller has no flow {}: its service is disabled here, or a newer version must run it",
                    row.job.kind
                ))
            })?;
            flow.run(&runner, row).await
        };
        if let Err(error) = done.await {
            // The job stays open and durable; recovery takes it up again here or elsewhere.
            tracing::warn!(job.id = %id, error = error.chain(), detail = error.detail, "a job was left for later");
        }
        if !self.stop.is_cancelled() && !self.deps.ring.is_mine(here.resource) {
            self.release(id, here.resource).await;
        }
    }

    /// Lets go of a job that belongs to another controller now, and has that one told.
    async fn release(&self, id: JobId, resource: Uuid) {
        let me = self.deps.ring.me();
        let released = self.deps.db.write(move |tx| Box::pin(async move { db::job::release(tx, id, me).await })).await;
        if let Err(error) = released {
            // When this controller is fenced, others do not wait for its word.
            // Otherwise the next look at open jobs finds it again.
            return tracing::warn!(job.id = %id, error = &error as &dyn std::error::Error, "a job could not be let go of");
        }
        if let Some(tell) = self.on_release.get() {
            tell(id, resource);
        }
    }
}

/// Writes a job and what its first step records.
async fn accept<F: Flow>(tx: &mut db::Tx, at: &At, mut state: F::State) -> db::Result<JobRow> {
    let steps = F::steps(&state);
    if let Some(first) = steps.first() {
        first.record(tx, at, &mut state).await?;
    }
    let job = db::job::NewJob {
        id: at.job_id,
        kind: F::KIND,
        resource: JobResource { kind: F::NOUN.to_string(), id: F::resource(&state) },
        account_id: at.account_id,
        request_id: at.request_id.to_string(),
        traceparent: at.trace.header(),
        steps: steps.iter().map(|step| step.name()).collect(),
        step: 1,
        data: serde_json::to_string(&state)
            .map_err(|e| Error::internal(format_args!("a job could not be written: {e}")))?,
        created_at: at.now,
        deadline_at: at.now.plus_ms(i64::try_from(F::TIMEOUT.as_millis()).unwrap_or(i64::MAX)),
        generation: at.generation,
        controller_id: at.controller_id,
    };
    db::job::insert(tx, &job).await?;
    Ok(job.into_row())
}
