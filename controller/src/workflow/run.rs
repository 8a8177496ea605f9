//! Running one job: forward step by step, or backward after a failure.

use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use shared::api::job::JobState;
use shared::id::JobId;
use shared::{Code, Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trace::span::around;
use trace::{Kind, Span};

use super::course::{Course, Todo, Verdict, after_apply, after_undo};
use super::engine::{AnyFlow, FlowOf, JOBS_ENDED};
use super::flow::{At, Flow, Point, Probe, Step, StepCx};
use super::journal::Journalled;
use crate::cx::Trace;
use crate::db::cleanup::Cleanup;
use crate::db::job::JobRow;
use crate::deps::Deps;

/// How long one undoing may take.
const UNDO_TIMEOUT: Duration = Duration::from_secs(120);

/// What running a job needs besides the job.
pub(super) struct Runner {
    pub(super) deps: Arc<Deps>,
    pub(super) cancel: CancellationToken,
    /// Fires when the job is to be left where it is: it goes on elsewhere, or at the next start.
    pub(super) leave: CancellationToken,
    pub(super) probe: Option<Arc<dyn Probe>>,
}

impl Runner {
    async fn pass<F: Flow>(&self, job: JobId, step: &'static str, point: Point) -> Result<()> {
        match &self.probe {
            Some(probe) => probe.pass(job, F::KIND, step, point).await,
            None => Ok(()),
        }
    }
}

impl<F: Flow> AnyFlow for FlowOf<F> {
    fn run<'a>(&'a self, runner: &'a Runner, row: JobRow) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut run = Run::<F>::load(runner, row)?;
            let mut span = Span::under(run.at.trace, Kind::Internal, F::KIND);
            span.set_text("kring.job.id", run.at.job_id);
            span.set_text("kring.resource.id", run.row.job.resource.id);
            span.set("kring.generation", run.at.generation.cast_signed());
            run.at.trace = span.trace();
            let (request_id, trace) = (Arc::clone(&run.at.request_id), run.at.trace);
            let ended = trace::within(request_id, trace, Box::pin(run.run())).await;
            if let Ok(failed) = &ended {
                let state = match failed {
                    None => JobState::Succeeded,
                    Some(error) if error.code == Code::Cancelled => JobState::Cancelled,
                    Some(_) => JobState::Failed,
                };
                let labels = [("kind", F::KIND), ("state", state.as_str())];
                runner.deps.metrics.count(JOBS_ENDED, &labels, 1);
            }
            match &ended {
                Ok(None) => {}
                Ok(Some(failed)) => span.fail(failed),
                Err(left) => span.fail(format_args!("left for later: {left}")),
            }
            ended.map(|_| ())
        })
    }

    fn clean_up<'a>(&'a self, deps: &'a Arc<Deps>, owed: Cleanup) -> BoxFuture<'a, Result<()>> {
        Box::pin(super::cleanup::clean_up::<F>(deps, owed))
    }
}

/// A job on its way.
pub(super) struct Run<'a, F: Flow> {
    pub(super) runner: &'a Runner,
    steps: Vec<Arc<dyn Step<F::State>>>,
    pub(super) state: F::State,
    pub(super) at: At,
    pub(super) row: JobRow,
    pub(super) course: Course,
    deadline: Instant,
    _flow: PhantomData<fn() -> F>,
}

impl<'a, F: Flow> Run<'a, F> {
    fn load(runner: &'a Runner, row: JobRow) -> Result<Self> {
        let state: F::State = serde_json::from_str(&row.data)
            .map_err(|e| Error::internal(format_args!("the journal of job {} could not be read: {e}", row.job.id)))?;
        let now = runner.deps.clock.now();
        let left = u64::try_from(row.job.deadline_at.ms() - now.ms()).unwrap_or(0);
        let at = At {
            job_id: row.job.id,
            account_id: row.job.account_id,
            request_id: row.job.request_id.as_str().into(),
            trace: Trace::parse(&row.traceparent).unwrap_or_default(),
            now,
            generation: runner.deps.ring.generation(),
            controller_id: runner.deps.ring.me(),
        };
        if row.job.cancel_requested {
            runner.cancel.cancel();
        }
        let steps = F::steps(&state);
        let undone = row.job.rolled_back.len() + row.job.cleanup_owed.len();
        Ok(Self {
            course: Course::resume(steps.len(), row.job.state, row.next_step, undone),
            steps,
            state,
            at,
            deadline: Instant::now() + Duration::from_millis(left),
            runner,
            row,
            _flow: PhantomData,
        })
    }

    /// Runs it to its end and answers why it failed, if it did. The error says that the job is left for
    /// later.
    async fn run(mut self) -> Result<Option<Error>> {
        loop {
            match self.course.todo() {
                Todo::Apply(index) => self.forward(index).await?,
                Todo::Close => self.journal_end().await?,
                Todo::Undo(index) => self.backward(index).await?,
                Todo::Nothing => return Ok(self.row.job.error),
            }
        }
    }

    /// Applies one step and journals it, or turns back. The error means that the job is left for later.
    async fn forward(&mut self, index: usize) -> Result<()> {
        let step = Arc::clone(&self.steps[index]);
        let mut state = self.state.clone();
        let debt = match self.apply(&step, index, &mut state).await? {
            Ok(()) => {
                self.state = state;
                None
            }
            Err(error) if step.owed_when_failing() => {
                tracing::warn!(job.id = %self.at.job_id, job.step = step.name(), error = error.chain(),
                    "a step failed that cannot be taken back; it is owed as clean-up");
                self.row.job.cleanup_owed.push(step.name().to_string());
                Some(self.debt(step.name(), &error))
            }
            Err(error) => return self.turn_back(&step, error).await,
        };
        match self.journal_applied(&step, debt).await? {
            Journalled::Written(state) => {
                self.state = state;
                self.course = self.course.applied();
                Ok(())
            }
            Journalled::Refused(error) => self.turn_back(&step, error).await,
        }
    }

    /// A step has failed for good: from here on everything is undone.
    async fn turn_back(&mut self, step: &Arc<dyn Step<F::State>>, error: Error) -> Result<()> {
        tracing::info!(job.id = %self.at.job_id, job.kind = F::KIND, job.step = step.name(),
            error = error.chain(), detail = error.detail, "a job failed; rolling back");
        self.row.job.error = Some(error);
        self.journal_rolling_back().await
    }

    /// Applies one step, again when the failure may pass by itself.
    async fn apply(&self, step: &Arc<dyn Step<F::State>>, index: usize, state: &mut F::State) -> Result<Result<()>> {
        let mut attempt = 0;
        loop {
            let cx = self.step_cx(step.name(), index, false, attempt, self.deadline);
            let result = tokio::select! {
                biased;
                () = self.runner.leave.cancelled() => return Err(leaving()),
                () = self.runner.cancel.cancelled() => Err(Error::new(Code::Cancelled, "the job was cancelled")),
                () = tokio::time::sleep_until(self.deadline) =>
                    Err(Error::new(Code::DeadlineExceeded, format!("the job took longer than {} s", F::TIMEOUT.as_secs()))),
                result = self.apply_once(step, &cx, state) => result,
            };
            // An agent gave up a task of an earlier life of this job, which nobody has cancelled.
            let result = result.map_err(|error| match error.code {
                Code::Cancelled if !self.runner.cancel.is_cancelled() => Error { code: Code::Unavailable, ..error },
                _ => error,
            });
            if let Err(error) = &result
                && error.code.is_transient()
                && !self.runner.deps.ring.may_act()
            {
                // The database is away: how often something fails meanwhile says nothing about the step.
                self.wait_for_the_database().await?;
                continue;
            }
            attempt += 1;
            match &result {
                Ok(()) => return Ok(result),
                Err(error) => match after_apply(error.code, attempt) {
                    Verdict::Again => self.pause(attempt).await?,
                    Verdict::Leave => return result.map(Ok),
                    Verdict::Failed => return Ok(result),
                },
            }
        }
    }

    /// Undoes one step and journals that.
    async fn backward(&mut self, index: usize) -> Result<()> {
        let step = Arc::clone(&self.steps[index]);
        let owed = self.undo(&step, index).await?.err();
        match &owed {
            None => self.row.job.rolled_back.push(step.name().to_string()),
            Some(error) => {
                tracing::warn!(job.id = %self.at.job_id, job.step = step.name(), error = error.chain(),
                    "undoing failed; it is owed as clean-up");
                self.row.job.cleanup_owed.push(step.name().to_string());
            }
        }
        self.journal_undone(&step, owed).await
    }

    async fn undo(&self, step: &Arc<dyn Step<F::State>>, index: usize) -> Result<Result<()>> {
        let mut attempt = 0;
        loop {
            let cx = self.step_cx(step.name(), index, true, attempt, Instant::now() + UNDO_TIMEOUT);
            let result = tokio::select! {
                biased;
                () = self.runner.leave.cancelled() => return Err(leaving()),
                result = tokio::time::timeout_at(cx.deadline, self.undo_once(step, &cx)) => result
                    .unwrap_or_else(|_| Err(Error::new(Code::DeadlineExceeded, "undoing took too long"))),
            };
            attempt += 1;
            match &result {
                Ok(()) => return Ok(result),
                Err(error) => match after_undo(error.code, attempt) {
                    Verdict::Again => self.pause(attempt).await?,
                    Verdict::Leave => return result.map(Ok),
                    Verdict::Failed => return Ok(result),
                },
            }
        }
    }

    async fn apply_once(&self, step: &Arc<dyn Step<F::State>>, cx: &StepCx, state: &mut F::State) -> Result<()> {
        let work = async {
            self.runner.pass::<F>(self.at.job_id, step.name(), Point::BeforeApply).await?;
            step.apply(cx, state).await?;
            self.runner.pass::<F>(self.at.job_id, step.name(), Point::AfterApply).await
        };
        around(Kind::Internal, step.name(), |span| describe(span, cx), Box::pin(guarded(step.name(), work))).await
    }

    async fn undo_once(&self, step: &Arc<dyn Step<F::State>>, cx: &StepCx) -> Result<()> {
        let work = async {
            self.runner.pass::<F>(self.at.job_id, step.name(), Point::BeforeUndo).await?;
            step.undo(cx, &self.state).await?;
            self.runner.pass::<F>(self.at.job_id, step.name(), Point::AfterUndo).await
        };
        around(Kind::Internal, step.name(), |span| describe(span, cx), Box::pin(guarded(step.name(), work))).await
    }

    fn step_cx(&self, step: &'static str, index: usize, undoing: bool, attempt: u32, deadline: Instant) -> StepCx {
        // Others may have acted on the resource under a newer generation, in which it still belongs here.
        let owned = self.runner.deps.ring.generation_as_owner(self.row.job.resource.id);
        let generation = owned.unwrap_or(self.at.generation).max(self.at.generation);
        let share = |n: usize| u8::try_from(n * 100 / self.steps.len().max(1)).unwrap_or(100);
        StepCx {
            at: At { now: self.runner.deps.clock.now(), generation, ..self.at.clone() },
            deps: Arc::clone(&self.runner.deps),
            deadline,
            cancel: if undoing { CancellationToken::new() } else { self.runner.cancel.clone() },
            resource: self.row.job.resource.id,
            step,
            undoing,
            attempt,
            share: (share(index), share(index + 1)),
            leave: self.runner.leave.clone(),
            progress_written: AtomicI64::new(0),
        }
    }

    /// Waits, as long as the job may take, until this controller may act again.
    async fn wait_for_the_database(&self) -> Result<()> {
        tokio::select! {
            () = self.runner.leave.cancelled() => return Err(leaving()),
            // What comes of the job when it takes too long is decided where it is tried again.
            _ = self.runner.deps.ring.until_may_act(self.deadline) => {}
        }
        self.pause(1).await
    }

    /// Waits before the next try, longer each time.
    pub(super) async fn pause(&self, attempt: u32) -> Result<()> {
        let wait = backoff(attempt);
        tokio::select! {
            () = self.runner.leave.cancelled() => Err(leaving()),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }
}

/// A step that panics has failed.
async fn guarded(step: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(job.step = step, "a step panicked");
        Err(Error::internal(format_args!("the step {step} panicked")))
    })
}

fn describe(span: &mut Span, cx: &StepCx) {
    span.rename(|| format!("{} {}", if cx.undoing { "undo" } else { "step" }, cx.step));
    span.set_text("kring.job.id", cx.job_id);
    span.set("kring.attempt", i64::from(cx.attempt));
}

pub(super) fn leaving() -> Error {
    Error::new(Code::Unavailable, "the job was left where it is: it goes on when its owner takes it up")
}

/// Time before the next try: about 0.2, 0.8, 3.2, then at most 5 seconds, each with jitter.
pub(super) fn backoff(attempt: u32) -> Duration {
    let base = 50_u64.saturating_mul(4_u64.saturating_pow(attempt.min(6))).min(5000);
    Duration::from_millis(base / 2 + rand::random_range(0..=base / 2))
}
