//! One task, from its turn to its callback.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use shared::id::VmId;
use shared::{Code, Error};
use tokio::sync::oneshot;
use tokio::time::Instant;
use trace::span::around;
use trace::{Kind, Span};

use super::table::Turn;
use super::{Answer, Entry, Outcome, Progress, Work};
use crate::app::App;
use crate::controller::news::Told;

/// How long an operation may take to stop after it was told to.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// How often progress is posted at most.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How long a callback is tried after the deadline of its task.
const CALLBACK_GRACE: Duration = Duration::from_secs(180);

/// Runs a task to its end and delivers its outcome.
pub(super) async fn run(app: Arc<App>, entry: Arc<Entry>, work: Work, turn: Turn) {
    let Turn { mut before, mine } = turn;
    let task = async {
        wait_for_turn(&entry, &mut before).await.map_err(|error| worded(&entry, error))?;
        let began_under = entry.cx.generation();
        let outcome = Box::pin(supervise(&app, &entry, work)).await;
        record_raised(&app, &entry, began_under).await;
        outcome.map_err(|error| worded(&entry, error))
    };
    let describe = |span: &mut Span| {
        span.set_text("kring.task.id", entry.cx.task_id);
        span.set_text("kring.resource.id", entry.resource);
    };
    let outcome = around(Kind::Server, entry.path, describe, Box::pin(task)).await;
    log(&entry, &outcome);
    let told = Told::of(entry.path, &outcome);
    app.tasks.finish(&entry, outcome);
    if entry.path.starts_with("vm/") {
        app.command_ended(VmId::from_uuid(entry.resource), told);
    }
    let pass_on = async {
        // A task that gave up waiting must not let the next one overtake the one before.
        if let Some(before) = before {
            let _ = before.await;
        }
        drop(mine);
    };
    tokio::join!(pass_on, deliver(&app, &entry));
}

/// Waits for the end of the task before; `before` is `None` once it has ended.
async fn wait_for_turn(entry: &Entry, before: &mut Option<oneshot::Receiver<()>>) -> Result<(), Error> {
    if let Some(end) = before.as_mut() {
        // Its sender is dropped when the task before has ended: the error is what is waited for.
        entry.cx.until_cancelled(end.map(|_| Ok::<_, Error>(()))).await?;
    }
    *before = None;
    Ok(())
}

/// The command was repeated by the next owner while it ran: that generation is recorded with the VM as
/// well, or the owner before could act again after a restart of the agent.
async fn record_raised(app: &App, entry: &Entry, began_under: u64) {
    let generation = entry.cx.generation();
    if generation == began_under || !entry.path.starts_with("vm/") {
        return;
    }
    if let Err(error) = app.hypervisor.set_generation(VmId::from_uuid(entry.resource), generation).await {
        tracing::debug!(vm.id = %entry.resource, generation, %error, "the generation could not be recorded");
    }
}

/// Checks the generation, then runs the work with its progress posted, its deadline watched, and a
/// panic turned into a failure of this task alone.
async fn supervise(app: &Arc<App>, entry: &Entry, work: Work) -> Outcome {
    let cx = entry.cx.clone();
    if entry.path.starts_with("vm/") && app.tasks.must_ask_generation(entry.resource) {
        let vm_id = VmId::from_uuid(entry.resource);
        let recorded = cx.until_cancelled(app.hypervisor.generation(vm_id)).await?;
        app.tasks.recorded_generation(entry.resource, recorded);
    }
    app.tasks.check_generation(entry.resource, cx.generation())?;
    cx.check()?;
    let (cancel, deadline) = (cx.cancel.clone(), cx.deadline);
    let mut work = std::pin::pin!(AssertUnwindSafe(work(Arc::clone(app), cx)).catch_unwind());
    let result = tokio::select! {
        result = &mut work => Some(result),
        () = post_progress(app, entry) => None,
        () = cancel.cancelled() => tokio::time::timeout(STOP_GRACE, &mut work).await.ok(),
        () = tokio::time::sleep_until(deadline) => {
            cancel.cancel();
            tokio::time::timeout(STOP_GRACE, &mut work).await.ok()
        }
    };
    match result {
        Some(Ok(outcome)) => outcome,
        Some(Err(panic)) => {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(Error::internal(format!("the operation {} panicked: {text}", entry.path)))
        }
        None => Err(Error::new(Code::HostFailed, "the operation did not stop when it was told to")),
    }
}

/// Posts progress that changed, while the callback waits for the outcome. Never returns.
async fn post_progress(app: &App, entry: &Entry) {
    let mut answer = entry.answer.subscribe();
    let _ = answer.wait_for(|a| *a == Answer::Owed).await;
    let mut posted = Progress::default();
    loop {
        tokio::time::sleep(PROGRESS_EVERY).await;
        let now = entry.cx.progress_now();
        if now == posted {
            continue;
        }
        posted = now;
        if let Some(callback) = entry.callback()
            && let Err(error) = app.controller.report(&callback, &entry.report()).await
        {
            tracing::debug!(task.id = %entry.cx.task_id, %error, "progress could not be posted");
        }
    }
}

/// Posts the outcome when the request was not answered with it.
async fn deliver(app: &App, entry: &Entry) {
    let mut answer = entry.answer.subscribe();
    match answer.wait_for(|a| *a != Answer::Open).await {
        Ok(decided) if *decided == Answer::Owed => {}
        _ => return,
    }
    if entry.callback().is_none() {
        return;
    }
    let until = entry.cx.deadline.max(Instant::now()) + CALLBACK_GRACE;
    if let Err(error) = app.controller.deliver(|| entry.callback(), &entry.report(), until, app.tasks.all()).await {
        let (task, error) = (entry.cx.task_id, crate::log::chain(&error));
        tracing::warn!(task.id = %task, error, "the outcome could not be delivered; it can be asked for");
    }
}

/// Says why the task was stopped, when it was: the operation only knows that it was.
fn worded(entry: &Entry, error: Error) -> Error {
    let late = entry.cx.left().is_zero();
    let stopped = entry.cx.cancel.is_cancelled();
    match error.code {
        Code::StaleGeneration | Code::Internal => error,
        _ if entry.cancelled.load(Ordering::SeqCst) => {
            Error { code: Code::Cancelled, ..error.during("the work on the host was cancelled") }
        }
        _ if late && stopped => {
            Error { code: Code::DeadlineExceeded, ..error.during("the host had not done the work by its deadline") }
        }
        _ if stopped => Error { code: Code::Unavailable, ..error.during("the agent stops") },
        _ => error,
    }
}

fn log(entry: &Entry, outcome: &Outcome) {
    let (task, resource, command) = (entry.cx.task_id, entry.resource, entry.path);
    match outcome {
        Ok(_) => tracing::info!(task.id = %task, resource.id = %resource, command, "done"),
        Err(error) => tracing::warn!(
            task.id = %task, resource.id = %resource, command,
            code = %error.code, error = error.chain(), detail = error.detail.as_deref(), "failed"
        ),
    }
}
