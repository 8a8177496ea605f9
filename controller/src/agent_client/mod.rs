//! How the controller talks to agents: a connection is opened when there is something to say, and
//! closed a moment after the last of it (see [`warm`]).
//!
//! A command is answered at once, or accepted and later reported to the callback. A callback that
//! gets lost is found again by asking; an agent that has forgotten the task is sent the command
//! again. No slot is shared between hosts: a dead host costs its own callers little (see [`guard`]) and
//! nobody else anything.

mod connection;
mod guard;
mod warm;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use shared::id::{HostId, TaskId};
use shared::wire::host::Pong;
use shared::wire::{AgentCommand, HEADER_AGENT, HEADER_CONTROLLERS, TaskReport, controllers};
use shared::{Code, Error, Result};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trace::span::around;
use trace::{Kind, Span};
use uuid::Uuid;

use connection::Request;
pub use connection::{HostRef, Upgraded};
use guard::Guards;
pub use guard::{HostFigures, HostLimits};
use warm::Warm;

use crate::ring::Ring;

/// Time after which a task that has not reported is asked about.
const ASK_AFTER: Duration = Duration::from_secs(15);
/// Time without any answer from a host, after which its task is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// How often a command is sent again to an agent that has forgotten it.
const RESENDS: u32 = 3;
/// How long one exchange may take; an agent answers a command within a second.
const EXCHANGE: Duration = Duration::from_secs(20);

/// What a command is sent with.
#[derive(Clone, Debug)]
pub struct Order {
    /// Id of the task; the same id is not run twice.
    pub task_id: TaskId,
    /// Ring generation under which it is issued.
    pub generation: u64,
    /// The process of the agent that is meant, when it is known: one that was started since refuses what is on its
    /// way already.
    pub agent_id: Option<Uuid>,
    /// Its place among the commands of this controller ([`Agents::next_sequence`]), when those about one
    /// resource are given one after the other.
    pub sequence: Option<u64>,
    /// When it is given up.
    pub deadline: Instant,
    /// Fires when the work goes on elsewhere: the task is then left running on the host, for whoever
    /// asks for it again.
    pub leave: CancellationToken,
}

impl Order {
    /// An order outside of any job: a task of its own, for this process of the agent.
    #[must_use]
    pub fn to(agent_id: Option<Uuid>, generation: u64, deadline: Instant) -> Self {
        let (task_id, leave) = (TaskId::new(), CancellationToken::new());
        Self { task_id, generation, agent_id, sequence: None, deadline, leave }
    }

    /// The same, for whoever answers: what only asks.
    #[must_use]
    pub fn once(generation: u64, deadline: Instant) -> Self {
        Self::to(None, generation, deadline)
    }
}

/// Who wants to know how far a command is.
pub trait Progress: Send + Sync {
    /// The host says that it is so far, 0 to 100.
    fn told(&self, percent: u8) -> BoxFuture<'_, ()>;
}

/// For commands whose progress nobody wants to know.
pub struct NoProgress;

impl Progress for NoProgress {
    fn told(&self, _: u8) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

struct Waiter {
    host: HostId,
    reports: mpsc::Sender<TaskReport>,
}

/// All agents, seen from one controller.
pub struct Agents {
    connections: Arc<Warm>,
    callback_base: String,
    /// Addresses of this controller, the one for callbacks first.
    own: OnceLock<Vec<String>>,
    /// Addresses of all controllers, as the header has them.
    controllers: ArcSwap<String>,
    waiting: Mutex<HashMap<TaskId, Waiter>>,
    tasks: TaskTracker,
    clock: crate::clock::Clock,
    ring: Ring,
    guards: Guards,
    sequence: AtomicU64,
}

impl Agents {
    /// A client that presents and checks certificates by `tls`, until `stop`. Agents report to
    /// `<callback_base>/agent/v1/callbacks/<task>`.
    #[must_use]
    pub fn new(
        tls: Arc<rustls::ClientConfig>,
        callback_base: String,
        tasks: TaskTracker,
        stop: CancellationToken,
        clock: crate::clock::Clock,
        ring: Ring,
    ) -> Arc<Self> {
        let controllers = ArcSwap::from_pointee(controllers::write(&controllers::clean([callback_base.as_str()])));
        let own = OnceLock::new();
        Arc::new(Self {
            connections: Warm::new(tls, tasks.clone(), stop),
            callback_base,
            own,
            controllers,
            waiting: Mutex::default(),
            tasks,
            clock,
            ring,
            guards: Guards::new(HostLimits::default()),
            sequence: AtomicU64::new(0),
        })
    }

    /// Says where this controller is reached: `https://ADDRESS:PORT` each, the one for callbacks first. They
    /// are said once, at the start.
    pub fn set_own_addresses(&self, urls: Vec<String>) {
        // A second time would say the same.
        let _ = self.own.set(urls);
        self.set_others(&[]);
    }

    /// Where this controller is reached.
    #[must_use]
    pub fn own_addresses(&self) -> &[String] {
        self.own.get().map_or(std::slice::from_ref(&self.callback_base), Vec::as_slice)
    }

    /// Says where each of the other controllers is reached, in its own order. Agents are told with their next
    /// ping or command, and turn to the others when one does not answer: to the one that told them first, so
    /// that not all agents turn to the same one.
    pub fn set_others(&self, others: &[&[String]]) {
        let each = [&[self.own_addresses()], others].concat();
        self.controllers.store(Arc::new(controllers::write(&controllers::merge(&each))));
    }

    /// Says what one host may cost.
    pub fn set_limits(&self, limits: HostLimits) {
        self.guards.set_limits(limits);
    }

    /// Forgets what is remembered of a host that is gone, or that belongs to another controller now.
    pub fn forget(&self, host: HostId) {
        self.guards.forget(host);
    }

    /// What became of commands to hosts, for metrics.
    #[must_use]
    pub fn figures(&self) -> HostFigures {
        let (requests, connections) = self.connections.counted();
        HostFigures { requests, connections, ..self.guards.figures() }
    }

    /// Where agents reach the controllers.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        controllers::read(&self.controllers.load())
    }

    /// A number that is greater than every one before.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Relaxed) + 1
    }

    /// Asks a host for its sign of life.
    pub async fn ping(&self, host: &HostRef, timeout: Duration) -> Result<Pong> {
        let request = Request::new(Method::GET, "/v1/ping").header(HEADER_CONTROLLERS, self.controllers.load()).last();
        self.exchange(host, request, Instant::now() + timeout).await?.read()
    }

    /// Has a command carried out, and waits for its outcome until the order's deadline. When the
    /// caller stops waiting earlier, the task is cancelled on the host.
    pub async fn command<C: AgentCommand>(
        self: &Arc<Self>,
        host: &HostRef,
        order: Order,
        command: &C,
        progress: &dyn Progress,
    ) -> Result<C::Reply> {
        let task_id = order.task_id;
        let describe = |span: &mut Span| {
            span.set_text("kring.host.id", host.id);
            span.set_text("kring.task.id", task_id);
            span.set("server.address", &*host.address);
        };
        let work = Box::pin(self.carry_out(host, order, command, progress));
        around(Kind::Client, C::PATH, describe, work).await
    }

    async fn carry_out<C: AgentCommand>(
        self: &Arc<Self>,
        host: &HostRef,
        mut order: Order,
        command: &C,
        progress: &dyn Progress,
    ) -> Result<C::Reply> {
        let _place = self.guards.enter(host.id, order.deadline).await?;
        let mut reported = self.expect(host.id, order.task_id);
        let leave = order.leave.clone();
        let mut guard = Abandoned {
            agents: self,
            host: host.clone(),
            task_id: order.task_id,
            generation: order.generation,
            running: false,
            leave,
        };
        let body = serde_json::to_vec(command)
            .map_err(|e| Error::internal(format_args!("the command {} could not be written: {e}", C::PATH)))?;
        let (mut sends, mut others) = (0, 0);
        loop {
            self.ring.until_may_act(order.deadline).await?;
            // It may be running as soon as the request is on its way.
            guard.running = true;
            let answer = self.exchange(host, self.request::<C>(&order, body.clone()), order.deadline).await?;
            if answer.status != StatusCode::ACCEPTED {
                guard.running = false;
                match answer.agent_id {
                    None => return answer.read(),
                    Some(_) if others == RESENDS => return Err(keeps_restarting()),
                    Some(agent_id) => {
                        tracing::info!(host.id = %host.id, task.id = %order.task_id, "the agent was started again; sending it to the one that answers");
                        order.agent_id = Some(agent_id);
                        others += 1;
                        continue;
                    }
                }
            }
            sends += 1;
            let outcome = self.outcome(host, &order, &mut reported, progress).await;
            match outcome {
                Ok(Some(reply)) => {
                    guard.running = false;
                    return serde_json::from_value(reply)
                        .map_err(|e| Error::internal(format_args!("the reply to {} could not be read: {e}", C::PATH)));
                }
                Ok(None) if sends <= RESENDS => {
                    tracing::info!(host.id = %host.id, task.id = %order.task_id, "the agent has forgotten a task; sending it again");
                }
                Ok(None) => return Err(keeps_restarting()),
                Err(error) => {
                    guard.running = error.code == Code::DeadlineExceeded;
                    return Err(error);
                }
            }
        }
    }

    /// Waits for reports on a task from a host, instead of whoever waited for them before.
    pub(crate) fn expect(&self, host: HostId, task: TaskId) -> mpsc::Receiver<TaskReport> {
        let (reports, reported) = mpsc::channel(8);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(task, Waiter { host, reports });
        reported
    }

    /// Hands a report to whoever waits for it. False when nobody does, or not from this host.
    pub fn deliver(&self, host: HostId, report: TaskReport) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.get(&report.task_id()) {
            // A full queue holds progress only; the outcome is then found by asking.
            Some(waiter) if waiter.host == host => waiter.reports.try_send(report).is_ok(),
            _ => false,
        }
    }

    /// Opens a raw stream to a console on a host.
    pub async fn open_console(&self, host: &HostRef, path: &str, timeout: Duration) -> Result<Upgraded> {
        connection::upgrade(self.connections.tls(), host, path, Instant::now() + timeout).await
    }

    /// Hands a request to another controller at `ADDRESS:PORT`, with its body as it comes, and reads the answer.
    ///
    /// # Errors
    /// `unavailable` when it is not reached or breaks off.
    pub async fn hand_on<B>(&self, controller: &[String], request: http::Request<B>) -> Result<http::Response<Bytes>>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        connection::hand_on(self.connections.tls(), controller, request).await
    }

    /// Hands a request for another protocol to another controller, and reads the answer; with the connection,
    /// when that one has agreed.
    ///
    /// # Errors
    /// `unavailable` when it is not reached, breaks off or does not answer in time.
    pub async fn hand_on_upgrade(
        &self,
        controller: &[String],
        request: http::Request<()>,
    ) -> Result<(http::Response<Bytes>, Option<Upgraded>)> {
        connection::hand_on_upgrade(self.connections.tls(), controller, request).await
    }

    /// Waits for the outcome of an accepted task. `None`: the agent does not know it any more.
    async fn outcome(
        &self,
        host: &HostRef,
        order: &Order,
        reported: &mut mpsc::Receiver<TaskReport>,
        progress: &dyn Progress,
    ) -> Result<Option<serde_json::Value>> {
        let mut heard_at = Instant::now();
        loop {
            let ask_at = (Instant::now() + ASK_AFTER.mul_f64(rand::random_range(0.8..1.2))).min(order.deadline);
            let report = match tokio::time::timeout_at(ask_at, reported.recv()).await {
                Ok(Some(report)) => report,
                _ if Instant::now() >= order.deadline => {
                    return Err(Error::new(Code::DeadlineExceeded, "the host did not finish in time"));
                }
                _ => {
                    let path = format!("/v1/tasks/{}", order.task_id);
                    match self.exchange(host, Request::new(Method::GET, path), order.deadline).await {
                        Ok(answer) if answer.status == StatusCode::NOT_FOUND => return Ok(None),
                        Ok(answer) => answer.read()?,
                        Err(error) if heard_at.elapsed() > GIVE_UP_AFTER => return Err(error),
                        Err(_) => continue,
                    }
                }
            };
            heard_at = Instant::now();
            match report {
                TaskReport::Running { progress: percent, .. } => progress.told(percent).await,
                TaskReport::Done { reply, .. } => return Ok(Some(reply)),
                TaskReport::Failed { error, .. } => return Err(error),
            }
        }
    }

    fn request<C: AgentCommand>(&self, order: &Order, body: Vec<u8>) -> Request {
        let left = order.deadline.saturating_duration_since(Instant::now());
        let deadline = self.clock.now().plus_ms(i64::try_from(left.as_millis()).unwrap_or(i64::MAX));
        let request = Request::new(Method::POST, format!("/v1/commands/{}", C::PATH));
        let request = match trace::current() {
            Some(scope) => request
                .header(shared::wire::HEADER_TRACEPARENT, scope.trace.header())
                .header(shared::wire::HEADER_REQUEST_ID, scope.request_id),
            None => request,
        };
        let request = match order.sequence {
            Some(sequence) => request.header(shared::wire::HEADER_SEQUENCE, sequence),
            None => request,
        };
        let request = match order.agent_id {
            Some(agent_id) => request.header(HEADER_AGENT, agent_id),
            None => request,
        };
        request
            .header(shared::wire::HEADER_TASK, order.task_id)
            .header(shared::wire::HEADER_GENERATION, order.generation)
            .header(HEADER_CONTROLLERS, self.controllers.load())
            .header(shared::wire::HEADER_DEADLINE, deadline.ms())
            .header(shared::wire::HEADER_TIME_LEFT, left.as_millis())
            .header(
                shared::wire::HEADER_CALLBACK,
                format_args!("{}/agent/v1/callbacks/{}", self.callback_base, order.task_id),
            )
            .json(body)
    }

    async fn exchange(&self, host: &HostRef, request: Request, deadline: Instant) -> Result<connection::Answer> {
        let answer = self.connections.exchange(host, &request, deadline.min(Instant::now() + EXCHANGE)).await;
        match &answer {
            // Whatever it says, it is there.
            Ok(_) => self.guards.answered(host.id),
            Err(error) if error.code == Code::HostUnreachable => self.guards.failed(host.id),
            Err(_) => {}
        }
        answer
    }
}

fn keeps_restarting() -> Error {
    Error::new(Code::HostFailed, "the agent on the host keeps restarting")
}

/// Cancels a task that nobody waits for any more, and forgets its waiter.
struct Abandoned<'a> {
    agents: &'a Arc<Agents>,
    host: HostRef,
    task_id: TaskId,
    generation: u64,
    running: bool,
    leave: CancellationToken,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        self.agents.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.task_id);
        if self.running && !self.leave.is_cancelled() {
            let (agents, host, task_id) = (Arc::clone(self.agents), self.host.clone(), self.task_id);
            // The next owner of the resource asks for the same task: it must not be ended for that one.
            let request = Request::new(Method::DELETE, format!("/v1/tasks/{task_id}"))
                .header(shared::wire::HEADER_GENERATION, self.generation)
                .last();
            self.agents.tasks.spawn(async move {
                // Says nothing of the host that its failed command has not said already.
                let sent = agents.connections.exchange(&host, &request, Instant::now() + EXCHANGE).await;
                if let Err(error) = sent {
                    tracing::debug!(host.id = %host.id, task.id = %task_id, error = error.chain(), "a task could not be cancelled");
                }
            });
        }
    }
}

impl connection::Answer {
    /// The body of a success, or the error that the agent answered.
    fn read<T: DeserializeOwned>(&self) -> Result<T> {
        if self.status.is_success() {
            return serde_json::from_slice(&self.body).map_err(|e| {
                Error::new(Code::HostFailed, "the answer of the agent could not be read").with_detail(e.to_string())
            });
        }
        let told: Result<Error, _> = serde_json::from_slice(&self.body);
        Err(told.unwrap_or_else(|_| {
            Error::new(Code::HostFailed, format!("the agent answered with status {}", self.status.as_u16()))
        }))
    }
}
