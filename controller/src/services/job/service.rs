//! Handlers of the job service.

use shared::api::Link;
use shared::api::job::Job;
use shared::api::page::Page;
use shared::id::JobId;
use shared::{Code, Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::db::job::JobRow;
use crate::messages::job::{CancelJob, GetJob, ListJobs, StopJob};
use crate::services::Context;

pub(super) async fn get(context: Context, _: Cx, message: GetJob) -> Result<Job> {
    read(&context, message.id).await
}

pub(super) async fn list(context: Context, cx: Cx, message: ListJobs) -> Result<Page<Job>> {
    let page = context.deps.db.page(&db::job::LIST, message.params, cx.caller.scope()).await?;
    Ok(page.read(|row| Ok(db::job::from_row(row)?.job))?.map(with_links))
}

/// Asking twice is asking once, so a repetition needs no remembered answer.
pub(super) async fn cancel(context: Context, cx: Cx, message: CancelJob) -> Result<Job> {
    let job = read(&context, message.id).await?;
    if job.state.is_final() && !job.cancel_requested {
        let text = format!("job {} has {} already: there is nothing to cancel", job.id, job.state);
        return Err(Error::new(Code::InvalidState, text));
    }
    if job.cancel_requested || cx.dry_run {
        return Ok(job);
    }
    context.engine.request_cancel(job.id).await?;
    // One way: what is written down is found by the owner's next sweep when this does not arrive.
    context.bus()?.notify(&cx, StopJob { id: job.id, resource: job.resource.id });
    read(&context, message.id).await
}

/// Stops a job that runs here. One that does not run yet reads in its row that it shall stop.
pub(super) async fn stop(context: Context, _: Cx, message: StopJob) -> Result<()> {
    context.engine.stop_here(message.id);
    Ok(())
}

pub(super) async fn read(context: &Context, id: JobId) -> Result<Job> {
    Ok(with_links(row(context, id).await?.job))
}

/// A job as it is written down, also who has it.
pub(super) async fn row(context: &Context, id: JobId) -> Result<JobRow> {
    context.deps.db.jobs.get(id).await?.ok_or_else(|| Error::not_found("job", id))
}

pub(super) fn with_links(mut job: Job) -> Job {
    let path = format!("/v1/jobs/{}", job.id);
    if !job.state.is_final() && !job.cancel_requested {
        job.links.insert("cancel".into(), Link::new("POST", format!("{path}/cancel")));
    }
    job.links.insert("self".into(), Link::new("GET", path));
    job
}
