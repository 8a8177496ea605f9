//! Tasks of a simulated host: run once whatever is repeated, one at a time per resource in the order
//! of arrival, refused when their generation is stale, forgotten when the agent restarts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use serde_json::value::RawValue;
use shared::fence::Fence;
use shared::id::TaskId;
use shared::wire::{
    HEADER_AGENT, HEADER_CALLBACK, HEADER_DEADLINE, HEADER_GENERATION, HEADER_REQUEST_ID, HEADER_SEQUENCE, HEADER_TASK,
    HEADER_TIME_LEFT, HEADER_TRACEPARENT, TaskReport,
};
use shared::{Code, Error, Result};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trace::Scope;
use uuid::Uuid;

use super::fault::{Halfway, Plan};
use super::history::Fate;
use super::host::{Host, Life};
use super::ops;

/// How long a command may take to be answered with its outcome.
const QUICK: Duration = Duration::from_millis(250);
/// How often a task says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Tasks that are remembered after they ended.
const KEEP: usize = 64;

/// How a task ended. As text, because a tree of values is several times as large and hosts are many.
pub type Outcome = Result<Box<RawValue>>;

/// One task.
pub(super) struct Entry {
    id: TaskId,
    path: String,
    resource: Uuid,
    outcome: watch::Sender<Option<Outcome>>,
    callback: Mutex<Option<String>>,
    /// Whether the outcome goes to the callback, because the request was answered without it.
    owed: Mutex<bool>,
    /// Percent done.
    progress: AtomicU8,
    cancel: CancellationToken,
}

impl Entry {
    fn lock_owed(&self) -> MutexGuard<'_, bool> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn callback(&self) -> Option<String> {
        self.callback.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far the task is.
    pub fn report(&self) -> TaskReport {
        match &*self.outcome.borrow() {
            Some(Ok(reply)) => match serde_json::from_str(reply.get()) {
                Ok(reply) => TaskReport::Done { task_id: self.id, reply },
                Err(error) => TaskReport::Failed { task_id: self.id, error: Error::internal(error) },
            },
            Some(Err(error)) => TaskReport::Failed { task_id: self.id, error: error.clone() },
            None => {
                let progress = self.progress.load(Relaxed);
                TaskReport::Running { task_id: self.id, progress, doing: "works".to_string() }
            }
        }
    }

    /// Asks the task to stop.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// The outcome when it is there soon; otherwise it will go to the callback.
    pub async fn quick_outcome(&self) -> Option<Outcome> {
        let ended = self.outcome.borrow().clone();
        if ended.is_some() || *self.lock_owed() {
            return ended;
        }
        let mut outcome = self.outcome.subscribe();
        // When the request breaks off, this future is dropped and the outcome is owed.
        let guard = Owed(self);
        let soon = tokio::time::timeout(QUICK, outcome.wait_for(Option::is_some)).await;
        let outcome = soon.ok().and_then(Result::ok).and_then(|outcome| outcome.clone());
        if outcome.is_some() {
            std::mem::forget(guard);
            return outcome;
        }
        drop(guard);
        // It may have ended between the two: then nobody has posted it, and it is answered here.
        if *self.lock_owed() { None } else { self.outcome.borrow().clone() }
    }

    /// The outcome, however long it takes.
    pub async fn wait(&self) {
        let mut outcome = self.outcome.subscribe();
        // The sender lives in this entry, so this ends only with an outcome.
        let _ = outcome.wait_for(Option::is_some).await;
    }
}

/// Marks the outcome as owed to the callback, unless it is there already.
struct Owed<'a>(&'a Entry);

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        let mut owed = self.0.lock_owed();
        *owed = self.0.outcome.borrow().is_none();
    }
}

/// What one life of an agent remembers.
#[derive(Default)]
pub(super) struct Table {
    tasks: HashMap<TaskId, Arc<Entry>>,
    ended: std::collections::VecDeque<TaskId>,
    tails: HashMap<Uuid, oneshot::Receiver<()>>,
    fences: HashMap<Uuid, Fence>,
}

impl Table {
    pub fn get(&self, id: TaskId) -> Option<Arc<Entry>> {
        self.tasks.get(&id).cloned()
    }

    /// Refuses what comes from an older generation than has acted on the resource of a task.
    pub fn check(&self, entry: &Entry, generation: u64) -> Result<()> {
        self.fences.get(&entry.resource).map_or(Ok(()), |fence| fence.check(generation))
    }

    fn end(&mut self, id: TaskId) {
        self.ended.push_back(id);
        if self.ended.len() > KEEP
            && let Some(oldest) = self.ended.pop_front()
        {
            self.tasks.remove(&oldest);
        }
    }
}

/// The conditions of a command.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub task_id: TaskId,
    pub callback: Option<String>,
    pub generation: u64,
    pub agent_id: Option<Uuid>,
    pub sequence: Option<u64>,
    pub deadline: Instant,
    pub scope: Option<Scope>,
}

impl Order {
    /// Reads them from the headers, at a host whose clock shows `clock_ms`.
    pub fn read(headers: &HeaderMap, clock_ms: i64) -> Result<Self> {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let number = |name: &str| {
            let number = text(name).and_then(|t| t.parse::<u64>().ok());
            number.ok_or_else(|| Error::invalid(name, "must be a decimal number"))
        };
        let task_id = text(HEADER_TASK).and_then(|t| t.parse().ok());
        let now = u64::try_from(clock_ms).unwrap_or(0);
        let left =
            number(HEADER_TIME_LEFT).or_else(|_| Ok::<_, Error>(number(HEADER_DEADLINE)?.saturating_sub(now)))?;
        let left = left.min(24 * 3600 * 1000);
        Ok(Self {
            task_id: task_id.ok_or_else(|| Error::invalid(HEADER_TASK, "must be the UUID of the task"))?,
            callback: text(HEADER_CALLBACK).map(str::to_string),
            generation: number(HEADER_GENERATION)?,
            agent_id: text(HEADER_AGENT).and_then(|t| t.parse().ok()),
            sequence: text(HEADER_SEQUENCE).and_then(|t| t.parse().ok()),
            deadline: Instant::now() + Duration::from_millis(left),
            scope: Scope::read(text(HEADER_REQUEST_ID), text(HEADER_TRACEPARENT)),
        })
    }
}

/// What an operation sees of its task.
pub(super) struct TaskCx {
    pub generation: u64,
    pub deadline: Instant,
    pub halfway: Option<Halfway>,
}

/// Why a command is not taken.
pub(super) enum Refused {
    /// It was meant for the agent before this one.
    ForAnother(Arc<Life>),
    /// Anything else.
    Error(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Takes a command: the task that it already is, or a new one (true) in the queue of its resource.
pub(super) fn submit(
    host: &Arc<Host>,
    order: Order,
    path: &str,
    body: &[u8],
    plan: Plan,
) -> Result<(Arc<Entry>, bool), Refused> {
    let resource = ops::resource(path, body)?;
    let life = host.life();
    if order.agent_id.is_some_and(|meant| meant != life.agent_id) {
        host.note(&order, resource, path, Fate::ForAnother);
        return Err(Refused::ForAnother(life));
    }
    let mut table = life.table();
    if let Some(known) = table.tasks.get(&order.task_id) {
        if known.path != path {
            return Err(Error::new(Code::Conflict, "this task id belongs to another command").into());
        }
        let known = Arc::clone(known);
        let checked = table.fences.entry(resource).or_default().admit_again(order.generation);
        host.note(&order, resource, path, if checked.is_ok() { Fate::Repeated } else { Fate::Stale });
        checked?;
        if order.callback.is_some() {
            *known.callback.lock().unwrap_or_else(PoisonError::into_inner) = order.callback;
        }
        return Ok((known, false));
    }
    if order.deadline <= Instant::now() {
        return Err(Error::new(Code::DeadlineExceeded, "the deadline of the command has passed").into());
    }
    let fence = table.fences.entry(resource).or_default();
    fence.raise(host.recorded_generation(resource));
    let admitted = fence.admit(order.generation, order.sequence);
    host.note(&order, resource, path, if admitted.is_ok() { Fate::Accepted } else { Fate::Stale });
    admitted?;
    let entry = Arc::new(Entry {
        id: order.task_id,
        path: path.to_string(),
        resource,
        outcome: watch::Sender::new(None),
        callback: Mutex::new(order.callback),
        owed: Mutex::new(plan.defer),
        progress: AtomicU8::new(0),
        // Not of the life: a task that ends with its agent says nothing, one that is cancelled does.
        cancel: CancellationToken::new(),
    });
    let (mine, end) = oneshot::channel();
    let before = table.tails.insert(resource, end);
    table.tasks.insert(order.task_id, Arc::clone(&entry));
    drop(table);
    let work = Work {
        host: Arc::clone(host),
        agent_id: life.agent_id,
        entry: Arc::clone(&entry),
        body: body.to_vec(),
        cx: TaskCx { generation: order.generation, deadline: order.deadline, halfway: plan.halfway.clone() },
        plan,
    };
    let token = life.token.clone();
    host.spawn(trace::within_any(order.scope, async move {
        // When the agent restarts, its tasks end where they are and nobody hears of them.
        token
            .run_until_cancelled(async {
                if let Some(before) = before {
                    // An error means that the task before has ended, which is what is waited for.
                    let _ = before.await;
                }
                work.run(mine).await;
            })
            .await;
    }));
    Ok((entry, true))
}

struct Work {
    host: Arc<Host>,
    /// The life in which it is done.
    agent_id: Uuid,
    entry: Arc<Entry>,
    body: Vec<u8>,
    cx: TaskCx,
    plan: Plan,
}

impl Work {
    async fn run(self, mine: oneshot::Sender<()>) {
        let working = self.host.working(self.agent_id, self.entry.id, self.entry.resource, &self.entry.path);
        let outcome = tokio::select! {
            outcome = self.outcome() => outcome,
            () = self.entry.cancel.cancelled() => {
                Err(Error::new(Code::Cancelled, "the work on the host was cancelled"))
            }
            () = tokio::time::sleep_until(self.cx.deadline) => {
                Err(Error::new(Code::DeadlineExceeded, "the host had not done the work by its deadline"))
            }
        };
        drop(working);
        self.host.life().table().end(self.entry.id);
        let owed = {
            let owed = self.entry.lock_owed();
            self.entry.outcome.send_replace(Some(outcome));
            *owed
        };
        drop(mine);
        if owed {
            self.deliver().await;
        }
    }

    async fn outcome(&self) -> Outcome {
        self.take_time().await;
        if self.plan.hang {
            return std::future::pending().await;
        }
        if let Some(error) = &self.plan.fail {
            return Err(error.clone());
        }
        let outcome = ops::run(&self.host, &self.cx, &self.entry.path, &self.body).await;
        if self.plan.restart_after {
            self.host.restart();
        }
        match &self.plan.fail_after {
            Some(error) => outcome.and(Err(error.clone())),
            None => outcome,
        }
    }

    /// Lets the time pass that the work takes, and says now and then how far it is, as agents do.
    async fn take_time(&self) {
        let (began, all) = (Instant::now(), self.plan.delay);
        loop {
            let left = all.saturating_sub(began.elapsed());
            tokio::time::sleep(left.min(PROGRESS_EVERY)).await;
            if left <= PROGRESS_EVERY {
                return;
            }
            let percent = began.elapsed().as_millis() * 100 / all.as_millis().max(1);
            self.entry.progress.store(u8::try_from(percent).unwrap_or(99).min(99), Relaxed);
            let owed = *self.entry.lock_owed();
            if let Some(callback) = self.entry.callback().filter(|_| owed) {
                // Beside the work, which waits for nobody.
                let (host, report) = (Arc::clone(&self.host), self.entry.report());
                self.host.spawn(async move { host.report(&callback, &report).await });
            }
        }
    }

    /// Posts the outcome as the faults have it.
    async fn deliver(&self) {
        let Some(callback) = self.entry.callback() else { return };
        if self.plan.callback_lost {
            return;
        }
        tokio::time::sleep(self.plan.callback_late).await;
        let report = self.entry.report();
        self.host.report(&callback, &report).await;
        if self.plan.callback_twice {
            self.host.report(&callback, &report).await;
        }
        if self.plan.callback_reordered {
            let task_id = self.entry.id;
            let older = TaskReport::Running { task_id, progress: 10, doing: "works".to_string() };
            self.host.report(&callback, &older).await;
        }
    }
}
