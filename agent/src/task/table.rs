//! Which tasks there are, who is next for each resource, and what is remembered of the past. All of
//! it is bounded: waiting tasks by number, finished ones by number, age and size, generations by number.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::fence::Fence;
use shared::id::TaskId;
use shared::{Code, Error, Result};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Answer, Entry, Order, Outcome, Prepared, TaskCx, run};
use crate::app::App;
use crate::config::AgentConfig;

/// Generations that are remembered; VMs have theirs in libvirt besides.
const MAX_RESOURCES: usize = 8192;
/// Bytes of replies that are remembered: consoles logs are long, and an idle agent is small.
const MAX_KEPT_BYTES: usize = 4 << 20;

/// The table of tasks.
pub struct Tasks {
    limits: Limits,
    table: Mutex<Table>,
    /// Cancels every task, when the agent stops and its grace is over.
    all: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    active: usize,
    queue: usize,
    keep: usize,
    keep_for: Duration,
}

#[derive(Default)]
struct Table {
    tasks: HashMap<TaskId, Arc<Entry>>,
    finished: VecDeque<Finished>,
    kept_bytes: usize,
    active: usize,
    resources: HashMap<Uuid, Resource>,
}

struct Finished {
    id: TaskId,
    at: Instant,
    bytes: usize,
}

struct Resource {
    /// Who has commanded it last.
    fence: Fence,
    /// Whether libvirt was asked what it has recorded (VMs only).
    recorded: bool,
    /// Tasks that wait or run.
    active: usize,
    /// Ends when the newest task has ended.
    tail: Option<oneshot::Receiver<()>>,
    used: Instant,
}

/// A task's place in the queue of its resource.
pub(super) struct Turn {
    /// Ends when the task before has ended.
    pub before: Option<oneshot::Receiver<()>>,
    /// Dropped when this task has ended, which lets the next one run.
    pub mine: oneshot::Sender<()>,
}

impl Tasks {
    /// An empty table.
    #[must_use]
    pub fn new(config: &AgentConfig) -> Self {
        let limits = Limits {
            active: config.max_tasks,
            queue: config.max_queue,
            keep: config.keep_tasks,
            keep_for: Duration::from_secs(config.keep_tasks_s),
        };
        Self { limits, table: Mutex::default(), all: CancellationToken::new() }
    }

    /// Takes a command: a task that is known already, or a new one that is put in its queue.
    ///
    /// # Errors
    /// `unavailable` when a queue is full or the agent stops, `stale_generation`, `deadline_exceeded`,
    /// and `conflict` when the task id belongs to another command.
    pub fn submit(&self, app: &Arc<App>, order: Order, prepared: Prepared) -> Result<Arc<Entry>> {
        let mut table = self.lock();
        table.forget_old(&self.limits);
        if let Some(known) = table.tasks.get(&order.task_id).map(Arc::clone) {
            if known.path != prepared.path || known.resource != prepared.resource {
                return Err(Error::new(Code::Conflict, "this task id belongs to another command"));
            }
            table.raise(known.resource, order.generation)?;
            known.cx.raise_generation(order.generation);
            known.redirect(order.callback);
            return Ok(known);
        }
        if app.shutdown.is_cancelled() {
            return Err(Error::new(Code::Unavailable, "the agent is stopping"));
        }
        if order.deadline <= Instant::now() {
            let message = "the deadline of the command has passed: compare the clocks of controller and host";
            return Err(Error::new(Code::DeadlineExceeded, message));
        }
        if table.active >= self.limits.active {
            return Err(Error::new(Code::Unavailable, "the host works on too many commands; try again later"));
        }
        let turn = table.queue_up(&prepared, &order, self.limits.queue)?;
        let scope = order.scope;
        let entry = Arc::new(Entry {
            path: prepared.path,
            resource: prepared.resource,
            callback: Mutex::new(order.callback),
            cx: TaskCx::new(order.task_id, order.generation, order.deadline, self.all.child_token()),
            outcome: watch::Sender::new(None),
            answer: watch::Sender::new(Answer::Open),
            cancelled: AtomicBool::new(false),
        });
        table.tasks.insert(order.task_id, Arc::clone(&entry));
        table.active += 1;
        drop(table);
        app.tracker.spawn(trace::within_any(scope, run::run(Arc::clone(app), Arc::clone(&entry), prepared.run, turn)));
        Ok(entry)
    }

    /// A task that is known.
    #[must_use]
    pub fn get(&self, id: TaskId) -> Option<Arc<Entry>> {
        self.lock().tasks.get(&id).cloned()
    }

    /// Asks a task to stop. A controller that says under which generation it cancels may be too late: the
    /// next owner of the resource wants the same task.
    ///
    /// # Errors
    /// `stale_generation`.
    pub fn cancel(&self, entry: &Entry, generation: Option<u64>) -> Result<()> {
        if let Some(generation) = generation {
            self.check_generation(entry.resource, generation)?;
        }
        entry.cancel();
        Ok(())
    }

    /// Tasks that wait or run.
    #[must_use]
    pub fn active(&self) -> usize {
        self.lock().active
    }

    /// Whether a task about a resource waits or runs.
    #[must_use]
    pub fn works_on(&self, resource: Uuid) -> bool {
        self.lock().resources.get(&resource).is_some_and(|known| known.active > 0)
    }

    /// Cancels everything: the agent's grace is over.
    pub fn cancel_all(&self) {
        self.all.cancel();
    }

    /// Cancelled together with every task.
    pub(super) fn all(&self) -> &CancellationToken {
        &self.all
    }

    /// Whether libvirt still has to be asked which generation it has recorded for a resource.
    pub(super) fn must_ask_generation(&self, resource: Uuid) -> bool {
        self.lock().resources.get(&resource).is_none_or(|r| !r.recorded)
    }

    /// Takes note of the generation that libvirt has recorded.
    pub(super) fn recorded_generation(&self, resource: Uuid, generation: Option<u64>) {
        if let Some(known) = self.lock().resources.get_mut(&resource) {
            known.recorded = true;
            known.fence.raise(generation.unwrap_or(0));
        }
    }

    /// Refuses a generation that is older than the newest seen.
    pub(super) fn check_generation(&self, resource: Uuid, generation: u64) -> Result<()> {
        self.lock().resources.get(&resource).map_or(Ok(()), |known| known.fence.check(generation))
    }

    /// Records the outcome; the first one stays.
    pub(super) fn finish(&self, entry: &Entry, outcome: Outcome) {
        let bytes = match &outcome {
            Ok(reply) => weight(reply),
            Err(error) => 256 + error.message.len() + error.causes.iter().map(String::len).sum::<usize>(),
        };
        let mut table = self.lock();
        table.active = table.active.saturating_sub(1);
        table.kept_bytes += bytes;
        table.finished.push_back(Finished { id: entry.cx.task_id, at: Instant::now(), bytes });
        if let Some(resource) = table.resources.get_mut(&entry.resource) {
            resource.active = resource.active.saturating_sub(1);
            resource.used = Instant::now();
        }
        drop(table);
        entry.outcome.send_replace(Some(outcome));
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn queue_up(&mut self, prepared: &Prepared, order: &Order, max: usize) -> Result<Turn> {
        self.forget_resources();
        let now = Instant::now();
        let resource = self.resources.entry(prepared.resource).or_insert(Resource {
            fence: Fence::default(),
            recorded: false,
            active: 0,
            tail: None,
            used: now,
        });
        resource.fence.check(order.generation)?;
        if resource.active >= max {
            let message = "too many commands wait for this resource; try again later";
            return Err(Error::new(Code::Unavailable, message));
        }
        resource.fence.admit(order.generation, order.sequence)?;
        let (mine, end) = oneshot::channel();
        resource.active += 1;
        resource.used = now;
        Ok(Turn { before: resource.tail.replace(end), mine })
    }

    /// A command was repeated: by the same owner, by the next one, or too late by the one before.
    fn raise(&mut self, resource: Uuid, generation: u64) -> Result<()> {
        self.resources.get_mut(&resource).map_or(Ok(()), |known| known.fence.admit_again(generation))
    }

    fn forget_old(&mut self, limits: &Limits) {
        let now = Instant::now();
        while let Some(oldest) = self.finished.front() {
            let keep = self.finished.len() <= limits.keep
                && self.kept_bytes <= MAX_KEPT_BYTES
                && now.duration_since(oldest.at) <= limits.keep_for;
            if keep {
                return;
            }
            self.kept_bytes = self.kept_bytes.saturating_sub(oldest.bytes);
            self.tasks.remove(&oldest.id);
            self.finished.pop_front();
        }
    }

    /// Forgets the older half of the idle resources when there are too many.
    fn forget_resources(&mut self) {
        if self.resources.len() < MAX_RESOURCES {
            return;
        }
        let mut used: Vec<Instant> = self.resources.values().filter(|r| r.active == 0).map(|r| r.used).collect();
        used.sort_unstable();
        if let Some(middle) = used.get(used.len() / 2).copied() {
            self.resources.retain(|_, r| r.active > 0 || r.used > middle);
        }
    }
}

/// About how many bytes of memory a reply takes.
fn weight(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    64 + match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(s) => s.len(),
        Value::Array(list) => list.iter().map(weight).sum(),
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + weight(v)).sum(),
    }
}
