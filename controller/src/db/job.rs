//! Rows of jobs: the journal of the workflow engine.
//!
//! A job is run by one controller at a time, named in its row; another one may take it only when that
//! one has let go of it or is no member any more. Every write of the engine names the controller and
//! the generation under which it acts; a row that somebody else has, or a newer generation has
//! touched, refuses it ([`shared::Code::StaleGeneration`]).

use serde::Serialize;
use shared::api::job::{Job, JobResource, JobState};
use shared::id::{AccountId, ControllerId, JobId};
use shared::time::Timestamp;
use shared::{Code, Error as Fault};
use uuid::Uuid;

use super::filter::Field;
use super::gather::Found;
use super::page::ListSpec;
use super::row::{found_in, json};
use super::{Conn, Result, Row, Tx, query};

/// Lists of jobs.
pub const LIST: ListSpec = ListSpec {
    columns: "job.*",
    from: "job",
    only: None,
    fields: &[
        Field::id("id", "job.id").sortable(),
        Field::text("kind", "job.kind"),
        Field::text("state", "job.state").sortable(),
        Field::text("resource.kind", "job.resource_kind"),
        Field::id("resource.id", "job.resource_id"),
        Field::text("request_id", "job.request_id"),
        Field::id("account_id", "job.account_id"),
        Field::time("created_at", "job.created_at"),
        Field::time("finished_at", "job.finished_at"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("job.account_id"),
};

/// A job to accept.
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// Its flow.
    pub kind: &'static str,
    /// What it works on.
    pub resource: JobResource,
    /// Who asked.
    pub account_id: AccountId,
    /// The request that asked.
    pub request_id: String,
    /// The trace that it is a part of.
    pub traceparent: String,
    /// Names of its steps.
    pub steps: Vec<&'static str>,
    /// The step that is next.
    pub step: usize,
    /// The command and what the steps have found, as JSON.
    pub data: String,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it is given up.
    pub deadline_at: Timestamp,
    /// Ring generation.
    pub generation: u64,
    /// The controller that runs it.
    pub controller_id: ControllerId,
}

/// A job as the engine needs it.
#[derive(Clone, Debug)]
pub struct JobRow {
    /// As users see it, without links.
    pub job: Job,
    /// The step that is next, or to be undone next.
    pub next_step: usize,
    /// The command and what the steps have found, as JSON.
    pub data: String,
    /// W3C trace context.
    pub traceparent: String,
    /// Ring generation of who wrote it last.
    pub generation: u64,
    /// The controller that runs it.
    pub controller_id: Option<ControllerId>,
}

impl NewJob {
    /// The row that it is accepted as.
    #[must_use]
    pub fn into_row(self) -> JobRow {
        let steps: Vec<String> = self.steps.iter().map(ToString::to_string).collect();
        let job = Job {
            id: self.id,
            kind: self.kind.to_string(),
            state: JobState::Queued,
            cancel_requested: false,
            progress: 0,
            step: steps.get(self.step).cloned(),
            steps,
            resource: self.resource,
            account_id: self.account_id,
            request_id: self.request_id,
            error: None,
            rolled_back: Vec::new(),
            cleanup_owed: Vec::new(),
            created_at: self.created_at,
            started_at: None,
            finished_at: None,
            deadline_at: self.deadline_at,
            links: shared::api::Links::new(),
        };
        let (data, traceparent) = (self.data, self.traceparent);
        let controller_id = Some(self.controller_id);
        JobRow { job, next_step: self.step, data, traceparent, generation: self.generation, controller_id }
    }
}

/// Accepts a job.
pub async fn insert(tx: &mut Tx, job: &NewJob) -> Result<()> {
    query(
        "INSERT INTO job (id, kind, state, resource_kind, resource_id, account_id, request_id, traceparent, step, steps,
             data, progress, cancel_requested, rolled_back, cleanup_owed, created_at, deadline_at, generation, controller_id)
         VALUES ($1, $2, 'queued', $3, $4, $5, $6, $7, $8, $9, $10, 0, 0, '[]', '[]', $11, $12, $13, $14)",
    )
    .bind(job.id.to_string())
    .bind(job.kind)
    .bind(job.resource.kind.clone())
    .bind(job.resource.id.to_string())
    .bind(job.account_id.to_string())
    .bind(job.request_id.clone())
    .bind(job.traceparent.clone())
    .bind(job.step as i64)
    .bind(json(&job.steps)?)
    .bind(job.data.clone())
    .bind(job.created_at.ms())
    .bind(job.deadline_at.ms())
    .bind(job.generation as i64)
    .bind(job.controller_id.to_string())
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// One job.
pub async fn get(conn: &mut Conn, id: JobId) -> Result<Option<JobRow>> {
    let row = query("SELECT * FROM job WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// Some jobs.
pub(super) async fn some(conn: &mut Conn, ids: &[JobId]) -> Result<Found<JobId, JobRow>> {
    found_in(conn, "SELECT * FROM job WHERE id", ids, from_row).await
}

/// Takes a job for `controller`, under a generation that is at least as new, and answers it as it is from
/// then on. `None` when it has ended, or somebody who lives, or is newer, has it.
pub async fn claim(tx: &mut Tx, id: JobId, controller: ControllerId, generation: u64) -> Result<Option<JobRow>> {
    let sql = "UPDATE job SET generation = $2, controller_id = $3
         WHERE id = $1 AND generation <= $2 AND finished_at IS NULL
             AND (controller_id IS NULL OR controller_id = $3 OR controller_id NOT IN (SELECT id FROM controller))
         RETURNING *";
    let row = query(sql)
        .bind(id.to_string())
        .bind(generation as i64)
        .bind(controller.to_string())
        .fetch_optional(tx.conn())
        .await?;
    row.as_ref().map(from_row).transpose()
}

/// Lets go of a job, so that the new owner of its resource may take it.
pub async fn release(tx: &mut Tx, id: JobId, controller: ControllerId) -> Result<()> {
    query("UPDATE job SET controller_id = NULL WHERE id = $1 AND controller_id = $2 AND finished_at IS NULL")
        .bind(id.to_string())
        .bind(controller.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// A job that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenJob {
    /// Which.
    pub id: JobId,
    /// What it works on.
    pub resource: Uuid,
    /// Whether a user wants it to stop.
    pub cancel_requested: bool,
    /// The controller that runs it, as far as its row says.
    pub controller_id: Option<ControllerId>,
}

/// Jobs that have not ended, oldest first, after a certain one.
pub async fn open_after(conn: &mut Conn, after: Option<JobId>, max: u32) -> Result<Vec<OpenJob>> {
    let after = after.map(|id| id.to_string()).unwrap_or_default();
    let rows = query(
        "SELECT id, resource_id, cancel_requested, controller_id FROM job WHERE finished_at IS NULL AND id > $1 ORDER BY id LIMIT $2",
    )
    .bind(after)
    .bind(i64::from(max))
    .fetch_all(conn)
    .await?;
    let open = |row: &Row| {
        let cancel_requested = row.int("cancel_requested")? != 0;
        let controller_id = row.opt_parse("controller_id")?;
        Ok(OpenJob { id: row.parse("id")?, resource: row.parse("resource_id")?, cancel_requested, controller_id })
    };
    rows.iter().map(open).collect()
}

/// Whether a resource has a job that has not ended.
pub async fn has_open(conn: &mut Conn, resource: Uuid) -> Result<bool> {
    let row = query("SELECT id FROM job WHERE resource_id = $1 AND finished_at IS NULL LIMIT 1")
        .bind(resource.to_string())
        .fetch_optional(conn)
        .await?;
    Ok(row.is_some())
}

/// The first job of a kind on a resource, to recognise a repeated create.
pub async fn find(conn: &mut Conn, resource: Uuid, kind: &'static str) -> Result<Option<JobRow>> {
    let row = query("SELECT * FROM job WHERE resource_id = $1 AND kind = $2 ORDER BY id LIMIT 1")
        .bind(resource.to_string())
        .bind(kind)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(from_row).transpose()
}

/// What the engine writes down between two steps.
pub struct Progress<'a, E> {
    /// Which job.
    pub id: JobId,
    /// Its state now.
    pub state: JobState,
    /// The step that is next, or to be undone next.
    pub step: usize,
    /// What the steps have found.
    pub data: &'a str,
    /// Percent done.
    pub progress: u8,
    /// Why it failed.
    pub error: Option<&'a E>,
    /// Steps that were undone.
    pub rolled_back: &'a [String],
    /// Steps whose undoing is owed.
    pub cleanup_owed: &'a [String],
    /// The time.
    pub now: Timestamp,
    /// Ring generation of the engine.
    pub generation: u64,
    /// The controller that runs it.
    pub controller_id: ControllerId,
}

/// Writes the progress of a job, unless another controller or a newer generation has it, or it has ended.
pub async fn journal<E: Serialize>(tx: &mut Tx, p: &Progress<'_, E>) -> Result<()> {
    let error = p.error.map(|error| json(error)).transpose()?;
    let rows = query(
        "UPDATE job SET state = $2, step = $3, data = $4, progress = $5, error = $6, rolled_back = $7, cleanup_owed = $8,
             started_at = COALESCE(started_at, $9), finished_at = $10, generation = $11
         WHERE id = $1 AND generation <= $11 AND controller_id = $12 AND finished_at IS NULL",
    )
    .bind(p.id.to_string())
    .bind(p.state.as_str())
    .bind(p.step as i64)
    .bind(p.data.to_string())
    .bind(i64::from(p.progress))
    .bind(error)
    .bind(json(&p.rolled_back)?)
    .bind(json(&p.cleanup_owed)?)
    .bind(p.now.ms())
    .bind(p.state.is_final().then_some(p.now.ms()))
    .bind(p.generation as i64)
    .bind(p.controller_id.to_string())
    .execute(tx.conn())
    .await?;
    if rows == 1 {
        return Ok(());
    }
    Err(Fault::new(Code::StaleGeneration, format!("job {} belongs to a newer generation, or has ended", p.id)).into())
}

/// What a job's journal holds, when the step before `step` is recorded already. Waits for whoever is
/// writing to the job.
pub async fn recorded(tx: &mut Tx, id: JobId, step: usize) -> Result<Option<String>> {
    let row = query("UPDATE job SET progress = progress WHERE id = $1 RETURNING state, step, data")
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?;
    let Some(row) = row else { return Ok(None) };
    let forward = matches!(row.parse("state")?, JobState::Running | JobState::Succeeded);
    let recorded = forward && row.int("step")? == step as i64;
    Ok(if recorded { Some(row.text("data")?) } else { None })
}

/// Writes how far a job is, between two steps.
pub async fn set_progress(tx: &mut Tx, id: JobId, percent: u8) -> Result<()> {
    query("UPDATE job SET progress = $2 WHERE id = $1 AND state = 'running'")
        .bind(id.to_string())
        .bind(i64::from(percent))
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// An owed undoing has succeeded.
pub async fn forget_cleanup(tx: &mut Tx, id: JobId, step: &str) -> Result<()> {
    let row =
        query("SELECT cleanup_owed FROM job WHERE id = $1").bind(id.to_string()).fetch_optional(tx.conn()).await?;
    let Some(row) = row else { return Ok(()) };
    let mut owed: Vec<String> = row.json("cleanup_owed")?;
    owed.retain(|name| name != step);
    query("UPDATE job SET cleanup_owed = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(json(&owed)?)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Notes that a user wants the job to stop. False when it has ended.
pub async fn request_cancel(tx: &mut Tx, id: JobId) -> Result<bool> {
    let rows = query("UPDATE job SET cancel_requested = 1 WHERE id = $1 AND finished_at IS NULL")
        .bind(id.to_string())
        .execute(tx.conn())
        .await?;
    Ok(rows == 1)
}

/// Removes ended jobs older than `before`; answers how many.
pub async fn trim(tx: &mut Tx, before: Timestamp, max: u32) -> Result<u64> {
    let rows =
        query("DELETE FROM job WHERE id IN (SELECT id FROM job WHERE finished_at < $1 ORDER BY finished_at LIMIT $2)")
            .bind(before.ms())
            .bind(i64::from(max))
            .execute(tx.conn())
            .await?;
    Ok(rows)
}

/// Reads a job.
pub fn from_row(row: &Row) -> Result<JobRow> {
    let steps: Vec<String> = row.json("steps")?;
    let next_step = usize::try_from(row.int("step")?).unwrap_or_default();
    let state: JobState = row.parse("state")?;
    let step = if state == JobState::Succeeded { None } else { steps.get(next_step).cloned() };
    let error = row.opt_text("error")?.map(|_| row.json("error")).transpose()?;
    let job = Job {
        id: row.parse("id")?,
        kind: row.text("kind")?,
        state,
        cancel_requested: row.int("cancel_requested")? != 0,
        progress: u8::try_from(row.int("progress")?).unwrap_or(100),
        step,
        steps,
        resource: JobResource { kind: row.text("resource_kind")?, id: row.parse("resource_id")? },
        account_id: row.parse("account_id")?,
        request_id: row.text("request_id")?,
        error,
        rolled_back: row.json("rolled_back")?,
        cleanup_owed: row.json("cleanup_owed")?,
        created_at: row.time("created_at")?,
        started_at: row.opt_time("started_at")?,
        finished_at: row.opt_time("finished_at")?,
        deadline_at: row.time("deadline_at")?,
        links: shared::api::Links::new(),
    };
    let generation = u64::try_from(row.int("generation")?).unwrap_or_default();
    Ok(JobRow {
        job,
        next_step,
        data: row.text("data")?,
        traceparent: row.text("traceparent")?,
        generation,
        controller_id: row.opt_parse("controller_id")?,
    })
}
