//! `/v1/jobs`: accepted work.

use std::sync::Arc;

use axum::extract::State;
use shared::Code;
use shared::api::job::Job;
use shared::api::page::{ListParams, Page};
use shared::id::JobId;

use super::Api;
use super::extract::{Id, List, Wait};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::job::{CancelJob, GetJob, ListJobs, WaitJob};

/// Lists jobs.
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(ListParams), responses((status = 200, body = Page<Job>)))]
pub async fn list_jobs(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListJobs { params }).await
}

/// Shows a job; with `Prefer: wait`, when it has ended or the time is over.
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs", params(("id" = JobId, Path)), responses((status = 200, body = Job)))]
pub async fn get_job(State(api): State<Arc<Api>>, cx: Cx, Wait(wait): Wait, Id(id): Id<JobId>) -> Answer {
    if let Some(wait) = wait
        && let Ok(_place) = api.waits.try_acquire()
    {
        let mut waiting = cx.clone();
        waiting.deadline = tokio::time::Instant::now() + wait;
        match api.call(&waiting, WaitJob { id }).await {
            Err(late) if late.code == Code::DeadlineExceeded => {}
            waited => return reply::ok(&waited?),
        }
    }
    reply::ok(&api.call(&cx, GetJob { id }).await?)
}

/// Asks a job to stop and to undo what it has done.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "jobs", params(("id" = JobId, Path)), responses((status = 202, body = Job), (status = 200, body = Job)))]
pub async fn cancel_job(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<JobId>) -> Answer {
    reply::cancelled(&api.call(&cx, CancelJob { id }).await?)
}
