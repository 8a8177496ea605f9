//! The journal of a running job: where it is, what it knows and what it owes, written in the transaction in
//! which a step is recorded or taken back.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use shared::api::job::Job;
use shared::{Code, Error, Result};
use uuid::Uuid;

use super::course::Course;
use super::flow::{At, Flow, Step};
use super::run::{Run, leaving};
use crate::db::cleanup::Cleanup;
use crate::db::event::NewEvent;
use crate::db::job::Progress;
use crate::db::{self, Tx};

/// How a write of the journal ended.
pub(super) enum Journalled<S> {
    Written(S),
    /// A rule refused what the step wanted to record: the step has failed.
    Refused(Error),
}

impl<F: Flow> Run<'_, F> {
    /// Records a step and journals it; the last one also ends the job.
    pub(super) async fn journal_applied(
        &self,
        step: &Arc<dyn Step<F::State>>,
        debt: Option<Cleanup>,
    ) -> Result<Journalled<F::State>> {
        let course = self.course.applied();
        let written = self.persist(|at, again| {
            let (step, mut state, job, debt) =
                (Arc::clone(step), self.state.clone(), self.row.job.clone(), debt.clone());
            db::work(move |tx| {
                Box::pin(async move {
                    // The commit may have been done although its answer was lost.
                    if again && let Some(data) = db::job::recorded(tx, at.job_id, course.step()).await? {
                        return Ok(from_json(&data)?);
                    }
                    step.record(tx, &at, &mut state).await?;
                    let data = to_json(&state)?;
                    owe(tx, &at, debt, &data).await?;
                    journal(tx, &at, &Entry { job: &job, course, data: &data }).await?;
                    Ok(state)
                })
            })
        });
        Ok(match written.await? {
            Ok(state) => Journalled::Written(state),
            Err(refused) => Journalled::Refused(refused),
        })
    }

    pub(super) async fn journal_end(&mut self) -> Result<()> {
        self.write_course(self.course.applied()).await
    }

    pub(super) async fn journal_rolling_back(&mut self) -> Result<()> {
        self.write_course(self.course.failed()).await
    }

    /// Journals where the job is now.
    async fn write_course(&mut self, course: Course) -> Result<()> {
        let written = self.persist(|at, _| {
            let (job, state) = (self.row.job.clone(), self.state.clone());
            db::work(move |tx| {
                Box::pin(async move {
                    let data = to_json(&state)?;
                    journal(tx, &at, &Entry { job: &job, course, data: &data }).await
                })
            })
        });
        written.await??;
        self.course = course;
        Ok(())
    }

    /// Takes back what a step recorded and journals that, with the debt when its undoing failed; the
    /// first step also ends the job.
    pub(super) async fn journal_undone(&mut self, step: &Arc<dyn Step<F::State>>, owed: Option<Error>) -> Result<()> {
        let cancelled = self.row.job.error.as_ref().is_some_and(|e| e.code == Code::Cancelled);
        let course = self.course.undone(cancelled);
        let debt = owed.map(|error| self.debt(step.name(), &error));
        let written = self.persist(|at, _| {
            let (step, state, job, debt) = (Arc::clone(step), self.state.clone(), self.row.job.clone(), debt.clone());
            db::work(move |tx| {
                Box::pin(async move {
                    step.unrecord(tx, &at, &state).await?;
                    let data = to_json(&state)?;
                    owe(tx, &at, debt, &data).await?;
                    journal(tx, &at, &Entry { job: &job, course, data: &data }).await
                })
            })
        });
        written.await??;
        self.course = course;
        Ok(())
    }

    /// What is owed when a step, or its undoing, has failed for good.
    pub(super) fn debt(&self, step: &'static str, error: &Error) -> Cleanup {
        Cleanup {
            id: Uuid::now_v7(),
            job_id: self.at.job_id,
            kind: F::KIND.to_string(),
            step: step.to_string(),
            resource_id: self.row.job.resource.id,
            data: String::new(),
            attempts: 0,
            last_error: error.chain(),
        }
    }

    /// Writes, again and again while the database fails; `make` is told whether it is for another time. The
    /// inner error is a refusal; the outer one says that the job is left to a newer owner, or that the process
    /// stops.
    async fn persist<T, W>(&self, make: impl Fn(At, bool) -> W) -> Result<Result<T>>
    where
        T: Send + 'static,
        W: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, db::Result<T>> + Send + 'static,
    {
        let mut attempt = 0;
        loop {
            let at = At { now: self.runner.deps.clock.now(), ..self.at.clone() };
            match self.runner.deps.db.write(make(at, attempt > 0)).await {
                Ok(value) => return Ok(Ok(value)),
                Err(db::Error::Refused(error)) if error.code == Code::StaleGeneration => return Err(error),
                Err(db::Error::Refused(error)) => return Ok(Err(error)),
                Err(db::Error::Closed) => return Err(leaving()),
                Err(error) if !error.is_transient() => return Ok(Err(error.into())),
                Err(error) => {
                    tracing::error!(job.id = %self.at.job_id, error = &error as &dyn std::error::Error, attempt,
                        "the journal of a job could not be written; trying again");
                    attempt += 1;
                    self.pause(attempt).await?;
                }
            }
        }
    }
}

/// Writes a debt down, with what the job knows now; it is first due in a second.
async fn owe(tx: &mut Tx, at: &At, debt: Option<Cleanup>, data: &str) -> db::Result<()> {
    let Some(debt) = debt else { return Ok(()) };
    let debt = Cleanup { data: data.to_string(), ..debt };
    db::cleanup::insert(tx, &debt, at.now.plus_ms(1000), at.now).await
}

/// What one write of the journal says.
struct Entry<'a> {
    job: &'a Job,
    course: Course,
    data: &'a str,
}

/// Writes the journal; the end of a job is also an event.
async fn journal(tx: &mut Tx, at: &At, entry: &Entry<'_>) -> db::Result<()> {
    let Entry { job, course, data } = *entry;
    let state = course.state();
    let row = Progress {
        id: job.id,
        state,
        step: course.step(),
        data,
        progress: course.progress(job.progress),
        error: job.error.as_ref(),
        rolled_back: &job.rolled_back,
        cleanup_owed: &job.cleanup_owed,
        now: at.now,
        generation: at.generation,
        controller_id: at.controller_id,
    };
    db::job::journal(tx, &row).await?;
    if !state.is_final() {
        return Ok(());
    }
    let content = serde_json::json!({ "job_id": job.id, "kind": job.kind, "state": state, "error": job.error });
    let event = NewEvent {
        path: &format!("/job/{state}"),
        resource_kind: &job.resource.kind,
        resource_id: job.resource.id,
        account_id: Some(job.account_id),
        content: &content,
        at: at.now,
    };
    db::event::append(tx, &event)
}

fn to_json<S: serde::Serialize>(state: &S) -> Result<String> {
    serde_json::to_string(state).map_err(|e| Error::internal(format_args!("a journal could not be written: {e}")))
}

fn from_json<S: serde::de::DeserializeOwned>(data: &str) -> Result<S> {
    serde_json::from_str(data).map_err(|e| Error::internal(format_args!("a journal could not be read: {e}")))
}
