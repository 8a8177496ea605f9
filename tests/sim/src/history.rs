//! What agents were told and did, in order, for tests that check it afterwards. Nothing is kept before
//! [`History::record`].

use std::sync::{Mutex, PoisonError};

use shared::id::{HostId, TaskId};
use uuid::Uuid;

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A new task.
    Accepted,
    /// A task that the agent has already.
    Repeated,
    /// Refused: a newer generation has acted on the resource.
    Stale,
}

/// A command that reached an agent.
#[derive(Clone, Debug)]
pub struct Action {
    /// The host.
    pub host: HostId,
    /// The resource that it is about.
    pub resource: Uuid,
    /// `<noun>/<verb>`
    pub path: String,
    /// The task.
    pub task: TaskId,
    /// Ring generation under which it was issued.
    pub generation: u64,
    /// What became of it.
    pub fate: Fate,
}

/// The commands of all hosts of a simulator, in the order in which they were taken.
#[derive(Debug, Default)]
pub struct History(Mutex<Option<Vec<Action>>>);

impl History {
    /// Keeps what happens from now on, and forgets what has happened before.
    pub fn record(&self) {
        *self.lock() = Some(Vec::new());
    }

    /// What has happened so far.
    #[must_use]
    pub fn actions(&self) -> Vec<Action> {
        self.lock().clone().unwrap_or_default()
    }

    pub(super) fn note(&self, action: impl FnOnce() -> Action) {
        if let Some(actions) = self.lock().as_mut() {
            actions.push(action());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<Action>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
