//! Waiting for the end of a job.

use std::time::Duration;

use shared::Result;
use shared::api::job::Job;
use tokio::time::Instant;

use super::service::read;
use crate::cx::Cx;
use crate::messages::job::WaitJob;
use crate::services::{Context, answer_by};

/// How often the database is asked about a job that may run on another controller, which cannot wake
/// those who wait here.
const ASK_AGAIN: Duration = Duration::from_secs(2);

pub(super) async fn wait(context: Context, cx: Cx, message: WaitJob) -> Result<Job> {
    let until = answer_by(&cx);
    loop {
        // Watched before it is read, so an end in between is not missed.
        let left_its_lane = context.engine.watch(message.id);
        let job = read(&context, message.id).await;
        if Instant::now() >= until || job.as_ref().map_or(true, |job| job.state.is_final()) {
            // Nobody will wake those who watch a job that has ended, so they are woken here.
            context.engine.wake(message.id);
            return job;
        }
        let ask_at = until.min(Instant::now() + ASK_AGAIN);
        tokio::select! {
            () = cx.cancelled.cancelled() => return job,
            // Woken or not, the database says what the job is.
            _ = tokio::time::timeout_at(ask_at, left_its_lane) => {}
        }
    }
}
