//! Waiting for the end of a job, here or on the controller that runs it.

use std::time::Duration;

use shared::Result;
use shared::api::job::Job;
use shared::id::{ControllerId, JobId};
use tokio::time::Instant;

use super::service::{row, with_links};
use crate::cx::Cx;
use crate::messages::job::{WaitJob, WatchJob};
use crate::services::{Context, answer_by};
use crate::workflow::Watched;

/// How often the database is asked whatever was told: the controller that runs the job may have gone.
const ASK_AGAIN: Duration = Duration::from_secs(2);

pub(super) async fn wait(context: Context, cx: Cx, message: WaitJob) -> Result<Job> {
    let until = answer_by(&cx);
    loop {
        // Watched before it is read, so an end in between is not missed.
        let mut watched = context.engine.watch(message.id);
        let row = row(&context, message.id).await;
        let ended = row.as_ref().map_or(true, |row| row.job.state.is_final());
        if ended || Instant::now() >= until {
            return row.map(|row| with_links(row.job));
        }
        let taken_by = row.as_ref().ok().and_then(|row| row.controller_id);
        let ask_at = until.min(Instant::now() + ASK_AGAIN);
        tokio::select! {
            () = cx.cancelled.cancelled() => return row.map(|row| with_links(row.job)),
            // Woken or not, the database says what the job is.
            _ = tokio::time::timeout_at(ask_at, moves(&context, &cx, message.id, taken_by, &mut watched)) => {}
        }
    }
}

/// Ends when the job may have ended, here or on the controller that has taken it.
async fn moves(context: &Context, cx: &Cx, id: JobId, taken_by: Option<ControllerId>, watched: &mut Watched) {
    let Some(other) = taken_by.filter(|controller| *controller != context.deps.ring.me()) else {
        return watched.left_its_lane().await;
    };
    let told = async {
        let bus = context.bus()?;
        bus.call_at(other, &cx.within(ASK_AGAIN), WatchJob { id }).await
    };
    tokio::select! {
        () = watched.left_its_lane() => {}
        told = told => if told.is_err() {
            // It has gone, or does not know this message yet: then the database is asked again in a while.
            std::future::pending::<()>().await;
        },
    }
}

/// Answers when a job has ended or left this controller, or a moment before the deadline.
pub(super) async fn watch(context: Context, cx: Cx, message: WatchJob) -> Result<()> {
    let mut watched = context.engine.watch(message.id);
    if !row(&context, message.id).await?.job.state.is_final() {
        tokio::select! {
            () = cx.cancelled.cancelled() => {}
            _ = tokio::time::timeout_at(answer_by(&cx), watched.left_its_lane()) => {}
        }
    }
    Ok(())
}
