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
    /// Refused: it was meant for the agent before its restart.
    ForAnother,
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

/// What happened on a host.
#[derive(Clone, Debug)]
pub enum Note {
    /// A command reached it.
    Command(Action),
    /// The work of a task begins.
    Began {
        /// The host.
        host: HostId,
        /// The process of its agent.
        agent_id: Uuid,
        /// The resource that it is about.
        resource: Uuid,
        /// `<noun>/<verb>`
        path: String,
        /// The task.
        task: TaskId,
    },
    /// Its agent ended, and all its work with it.
    Restarted(HostId),
    /// The work of a task is over, whether done, failed or given up.
    Ended {
        /// The host.
        host: HostId,
        /// The process of its agent.
        agent_id: Uuid,
        /// The resource that it was about.
        resource: Uuid,
        /// The task.
        task: TaskId,
    },
}

/// What happened on all hosts of a simulator, in order.
#[derive(Debug, Default)]
pub struct History(Mutex<Option<Vec<Note>>>);

impl History {
    /// Keeps what happens from now on, and forgets what has happened before.
    pub fn record(&self) {
        *self.lock() = Some(Vec::new());
    }

    /// What has happened so far.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        self.lock().clone().unwrap_or_default()
    }

    /// The commands among it.
    #[must_use]
    pub fn actions(&self) -> Vec<Action> {
        let command = |note: &Note| match note {
            Note::Command(action) => Some(action.clone()),
            Note::Began { .. } | Note::Restarted(_) | Note::Ended { .. } => None,
        };
        self.lock().iter().flatten().filter_map(command).collect()
    }

    pub(super) fn note(&self, note: impl FnOnce() -> Note) {
        if let Some(notes) = self.lock().as_mut() {
            notes.push(note());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<Note>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
