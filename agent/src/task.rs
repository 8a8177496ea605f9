//! Commands that run and that ran.
//!
//! A command becomes a task: run once whatever is repeated, one at a time per resource in the order
//! of arrival, refused when its generation is older than its resource has seen, stopped when it is
//! cancelled or late. The table is in memory only: after a restart the controller sends again, for
//! every command may be run twice.
//!
//! ```text
//! arrived ──▶ waiting (for its resource) ──▶ running ──▶ done | failed ──▶ forgotten (by age, number, size)
//! ```
//!
//! - [`table`]: which tasks there are, and who is next. - [`run`]: one task from its turn to its
//!   callback. - [`cx`]: what an operation sees of its task.

pub mod cx;
mod run;
mod table;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde_json::Value;
use shared::id::TaskId;
use shared::wire::TaskReport;
use shared::{Error, Result};
use tokio::sync::watch;
use tokio::time::Instant;
use trace::Scope;
use uuid::Uuid;

pub use cx::{Progress, TaskCx};
pub use table::Tasks;

use crate::app::App;

/// How a task ended.
pub type Outcome = Result<Value, Error>;

/// A command as it came: who asked for what, under which conditions.
#[derive(Clone, Debug)]
pub struct Order {
    /// Names the task.
    pub task_id: TaskId,
    /// Where the outcome goes when it is not there at once; only asked for later when absent.
    pub callback: Option<String>,
    /// Ring generation under which it was issued.
    pub generation: u64,
    /// Its place among the commands of that generation, when they come one after the other.
    pub sequence: Option<u64>,
    /// When it is given up.
    pub deadline: Instant,
    /// The request and the trace that it is a part of.
    pub scope: Option<Scope>,
}

/// An operation, parsed and ready to run.
pub struct Prepared {
    /// `<noun>/<verb>`.
    pub path: &'static str,
    /// What is commanded.
    pub resource: Uuid,
    /// The work.
    pub run: Work,
}

/// The work of a task.
pub type Work = Box<dyn FnOnce(Arc<App>, TaskCx) -> BoxFuture<'static, Outcome> + Send>;

/// Who gets the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The request is still open.
    Open,
    /// The request was answered with the outcome.
    Given,
    /// The request was answered with `202`, or broke off: the callback gets it.
    Owed,
}

/// One task.
pub struct Entry {
    path: &'static str,
    resource: Uuid,
    callback: Mutex<Option<String>>,
    cx: TaskCx,
    outcome: watch::Sender<Option<Outcome>>,
    answer: watch::Sender<Answer>,
    cancelled: AtomicBool,
}

impl Entry {
    /// How far the task is.
    #[must_use]
    pub fn report(&self) -> TaskReport {
        let task_id = self.cx.task_id;
        match &*self.outcome.borrow() {
            Some(Ok(reply)) => TaskReport::Done { task_id, reply: reply.clone() },
            Some(Err(error)) => TaskReport::Failed { task_id, error: error.clone() },
            None => {
                let Progress { percent, doing } = self.cx.progress_now();
                TaskReport::Running { task_id, progress: percent, doing }
            }
        }
    }

    fn callback(&self) -> Option<String> {
        self.callback.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A repeated command may come from the resource's next owner: the outcome goes there then.
    fn redirect(&self, callback: Option<String>) {
        if callback.is_some() {
            *self.callback.lock().unwrap_or_else(PoisonError::into_inner) = callback;
        }
    }

    /// Asks the task to stop; nothing happens to one that has ended.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.cx.cancel.cancel();
    }

    /// Waits for the outcome until `by`. `None` when it is not there yet: then the callback gets it.
    /// When this future is dropped, because the caller went away, the callback gets it too.
    pub async fn outcome_by(&self, by: Instant) -> Option<Outcome> {
        let mut owed = OwedOnDrop { entry: self, given: false };
        let mut outcome = self.outcome.subscribe();
        let ready = tokio::time::timeout_at(by, outcome.wait_for(Option::is_some)).await;
        let outcome = match ready {
            Ok(Ok(outcome)) => outcome.clone(),
            _ => None,
        };
        owed.given = outcome.is_some();
        outcome
    }
}

/// Decides who gets the outcome, once: the first decision stays.
struct OwedOnDrop<'a> {
    entry: &'a Entry,
    given: bool,
}

impl Drop for OwedOnDrop<'_> {
    fn drop(&mut self) {
        let decided = if self.given { Answer::Given } else { Answer::Owed };
        self.entry.answer.send_if_modified(|answer| {
            let open = *answer == Answer::Open;
            if open {
                *answer = decided;
            }
            open
        });
    }
}
