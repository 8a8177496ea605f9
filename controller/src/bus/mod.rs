//! CloudBus: how services talk, and the only way they do.
//!
//! - [`Bus::call`]: request → reply, to the owner of the resource that the request is about, or here.
//! - [`Bus::call_all`]: many requests with bounded parallelism, replies in the order of the requests.
//! - [`Bus::call_at`]: to a named controller.
//! - [`Bus::notify`]: one way.
//! - [`Bus::publish`] and [`Registry::subscribe`]: events.
//! - Cancel: dropping the future of a call fires [`Cx::cancelled`] for its handler, here or on another
//!   controller. Handlers that only wait stop then. What was accepted is a job, goes on, and is
//!   cancelled by its own message.
//!
//! A message for this controller does not leave the process and is not serialised, unless
//! [`Loopback::Broker`] asks for it.

pub mod envelope;
mod local;
mod message;
mod outbox;
mod queue;
pub mod rabbit;
mod registry;
mod remote;
mod stats;
mod transport;
mod wire;

use std::any::Any;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::id::ControllerId;
use shared::{Code, Error};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trace::{Kind, Span};
use uuid::Uuid;

pub use local::LocalTransport;
pub(crate) use message::request;
pub use message::{ApiEvent, ApiRequest, CanonicalEvent, Event, Message, Request};
pub use queue::{Full, Queues};
pub use registry::{Registry, Service};
pub use stats::{Figures, ServiceStats};
pub use transport::{Health, Told, Transport};

use crate::clock::Clock;
use crate::cx::Cx;
use crate::ring::Ring;
use envelope::{Envelope, Headers, to_raw};
use outbox::Outbox;
use registry::{Handler, WireHandler};
use remote::Waiting;

/// Which way a message takes whose owner is this controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loopback {
    /// Straight to the handler, without serialisation.
    #[default]
    Direct,
    /// Written, through the transport, and read again. For tests.
    Broker,
}

/// Bounds of the bus.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Messages that may wait for one resource.
    pub per_resource: usize,
    /// Messages that one service may have waiting and in flight.
    pub per_service: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_resource: 256, per_service: 65_536 }
    }
}

/// The reply to a request, as it travels.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireReply {
    Ok(Box<RawValue>),
    Error(Error),
}

/// Time before the ring is asked again for the owner of a resource, first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// How long a handler may go on with a resource that belongs to another controller now, before it is
/// cut off: the other one waits for it.
const LET_GO: Duration = Duration::from_secs(5);
/// How long a handler may go on after its caller has given up. One that takes longer waits for something
/// that will not come, a database on a way that is no more, and everything about its resource waits for it.
const STUCK: Duration = Duration::from_secs(20);
const REPLY: &str = "bus.Reply";
/// Says that nobody waits any more for the reply to the request in `correlation`.
const CANCEL: &str = "bus.Cancel";

/// The bus of one controller.
pub struct Bus {
    ring: Ring,
    clock: Clock,
    registry: Registry,
    queues: Arc<Queues>,
    limits: Limits,
    loopback: Loopback,
    transport: Arc<dyn Transport>,
    waiting: Mutex<HashMap<Uuid, Waiting>>,
    /// Requests from the wire that are being handled here, with what cancels them.
    in_hand: Mutex<HashMap<Uuid, CancellationToken>>,
    /// Events for the other controllers, told one after the other: those about one resource, which are published by
    /// its owner, come in their order.
    outbox: Outbox,
    tasks: TaskTracker,
}

impl Bus {
    /// Starts the bus with everything that registered. `inbox` is what the transport receives; it is
    /// read until `stop`.
    #[must_use]
    pub fn start(
        registry: Registry,
        ring: Ring,
        clock: Clock,
        limits: Limits,
        loopback: Loopback,
        (transport, inbox): (Arc<dyn Transport>, mpsc::Receiver<Vec<u8>>),
        (tasks, stop): (TaskTracker, CancellationToken),
    ) -> Arc<Self> {
        let outbox = Outbox::start(Arc::clone(&transport));
        let bus = Arc::new(Self {
            ring,
            clock,
            registry,
            queues: Queues::new(limits.per_resource, tasks.clone()),
            limits,
            loopback,
            transport,
            waiting: Mutex::default(),
            in_hand: Mutex::default(),
            outbox,
            tasks,
        });
        bus.tasks.spawn(Arc::clone(&bus).receive(inbox, stop));
        bus
    }

    /// Sends `message` to the owner of the resource that it is about, or handles it here, and waits
    /// for the reply until the deadline of `cx`.
    /// When the owner leaves, or has lost the resource, the ring is asked again: what a handler does must
    /// bear to be asked for twice.
    pub async fn call<M: Request>(self: &Arc<Self>, cx: &Cx, message: M) -> Result<M::Reply, Error> {
        let Some(resource) = message.resource() else {
            return self.call_at(self.ring.me(), cx, message).await;
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let result = match self.ring.owner(resource) {
                Ok(target) if self.ring.is_shared() => self.call_at(target, cx, message.clone()).await,
                Ok(target) => return self.call_at(target, cx, message).await,
                Err(nobody) => Err(nobody),
            };
            match result {
                Err(error) if error.code == Code::OwnerLeft && cx.left().is_ok_and(|left| left > pause) => {
                    self.ring.nudge();
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
    }

    /// Sends `message` to a certain controller and waits for the reply.
    pub async fn call_at<M: Request>(
        self: &Arc<Self>,
        target: ControllerId,
        cx: &Cx,
        message: M,
    ) -> Result<M::Reply, Error> {
        let mut span = Span::under(cx.trace, Kind::Client, M::NAME);
        let cx = &*cx.caused_by(&span);
        let reply = if target == self.ring.me() && self.loopback == Loopback::Direct {
            self.call_direct(cx, message).await
        } else {
            span.set_text("kring.controller", target);
            self.call_wire(target, cx, &message).await
        };
        if let Err(error) = &reply {
            span.fail(error);
        }
        reply
    }

    /// Sends all `messages`, at most `parallel` at a time; the replies are in the order of the messages.
    pub async fn call_all<M: Request>(
        self: &Arc<Self>,
        cx: &Cx,
        parallel: usize,
        messages: Vec<M>,
    ) -> Vec<Result<M::Reply, Error>> {
        stream::iter(messages).map(|message| self.call(cx, message)).buffered(parallel.max(1)).collect().await
    }

    /// Sends `message` and does not wait: a failure is logged.
    pub fn notify<M: Request>(self: &Arc<Self>, cx: &Cx, message: M) {
        let (bus, cx) = (Arc::clone(self), cx.clone());
        self.tasks.spawn(async move {
            if let Err(error) = bus.call(&cx, message).await {
                tracing::warn!(message.name = M::NAME, request.id = %cx.request_id, error = error.chain(), "a notification failed");
            }
        });
    }

    /// Tells every subscriber, here and on the other controllers.
    pub fn publish<E: Event>(self: &Arc<Self>, cx: &Cx, event: &E) {
        for subscriber in self.registry.subscribers.get(E::NAME).into_iter().flatten() {
            subscriber.deliver_local(event as &dyn Any);
        }
        // One that drains owns nothing any more and still waits for things.
        if self.ring.is_shared() {
            let envelope = Envelope::wrap(cx, "", event, self.ring.generation(), self.clock.now().ms());
            match envelope.and_then(|envelope| envelope.encode()) {
                Ok(bytes) => self.outbox.put(E::NAME, bytes),
                Err(error) => outbox::not_told(E::NAME, &error),
            }
        }
    }

    /// The services that registered.
    pub fn services(&self) -> impl Iterator<Item = (&'static str, &Service)> {
        self.registry.services.iter().map(|(name, service)| (*name, service))
    }

    /// This controller.
    #[must_use]
    pub const fn me(&self) -> ControllerId {
        self.ring.me()
    }

    /// Whether this controller owns a resource.
    #[must_use]
    pub fn owns(&self, id: Uuid) -> bool {
        self.ring.is_mine(id)
    }

    /// Whether messages about resources may go to other controllers.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.ring.is_shared()
    }

    /// Resolves when nothing is handled any more about resources that belong to other controllers.
    pub async fn until_let_go(&self) {
        while self.queues.any(|resource| !self.ring.is_mine(resource)) {
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }

    /// Leaves in order: what was published is told, then nothing is sent or received any more.
    pub async fn close(&self) {
        self.outbox.close().await;
        self.transport.close().await;
    }

    /// The way to the other controllers.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// How many resources have work here, and how many messages wait for them.
    #[must_use]
    pub fn queue_sizes(&self) -> (usize, usize) {
        self.queues.sizes()
    }

    /// Reads a body as the message of this name and writes it again.
    #[cfg(test)]
    pub(crate) fn round_trip(&self, name: &str, body: &serde_json::Value) -> Result<serde_json::Value, Error> {
        let written = self.wire_handler(name)?.round_trips(&to_raw(body)?)?;
        serde_json::from_str(written.get()).map_err(Error::internal)
    }

    async fn call_direct<M: Request>(self: &Arc<Self>, cx: &Cx, message: M) -> Result<M::Reply, Error> {
        let resource = message.resource();
        let handler = self.wire_handler(M::NAME)?;
        if handler.as_any().downcast_ref::<Handler<M>>().is_none() {
            return Err(Error::internal(format_args!("{} is registered with another type", M::NAME)));
        }
        let (reply, answer) = oneshot::channel();
        let handling = Cx { cancelled: CancellationToken::new(), ..cx.clone() };
        let _cancels = handling.cancelled.clone().drop_guard();
        let stats = Arc::clone(handler.stats());
        let bus = Arc::clone(self);
        let work = async move {
            if let Some(handler) = handler.as_any().downcast_ref::<Handler<M>>() {
                let deadline = handling.deadline;
                let handled = pin!(handler.handle(handling, message));
                let handled = bus.as_owner(resource, deadline, handled).await;
                // Nobody waits any more when this fails: the deadline passed.
                let _ = reply.send(handled);
            }
        };
        self.enqueue(resource, &stats, work)?;
        match tokio::time::timeout_at(cx.deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::internal(format_args!("the handler of {} went away", M::NAME))),
            Err(_) => Err(too_late(M::NAME)),
        }
    }

    fn wire_handler(&self, name: &str) -> Result<Arc<dyn WireHandler>, Error> {
        if let Some(handler) = self.registry.handlers.get(name) {
            return Ok(Arc::clone(handler));
        }
        // A message is named `<service>.<Type>`.
        self.refuse_disabled(name.split('.').next().unwrap_or_default())?;
        Err(Error::new(Code::UnknownMessage, format!("no service here understands {name}")))
    }

    /// Refuses with `service_disabled` what is for a service that this controller does not start.
    ///
    /// # Errors
    /// `service_disabled`
    pub fn refuse_disabled(&self, service: &str) -> Result<(), Error> {
        match self.registry.services.get(service) {
            Some(found) if found.disabled => {
                let text = format!("the service `{service}` is disabled on this controller by services.disabled");
                Err(Error::new(Code::ServiceDisabled, text))
            }
            _ => Ok(()),
        }
    }

    /// Handles something about a resource as its owner: begins when the old owner has let go, and is cut
    /// off a while after the resource has moved on, or after its caller has given up. What was accepted is
    /// durable by then.
    async fn as_owner<T>(
        &self,
        resource: Option<Uuid>,
        deadline: Instant,
        handling: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let handling = async {
            let in_time = tokio::time::timeout_at(deadline + STUCK, handling).await;
            in_time.unwrap_or_else(|_| Err(Error::new(Code::DeadlineExceeded, "the work was given up: it did not end")))
        };
        let Some(resource) = resource else { return handling.await };
        self.ring.until_mine(resource, deadline).await?;
        // What the database refuses to a stale owner is not the caller's business: its new owner does it.
        let handling = async {
            handling.await.map_err(|error| match error.code {
                Code::StaleGeneration => Error { code: Code::OwnerLeft, ..error },
                _ => error,
            })
        };
        // Also when nobody else is there now: whoever joins while this goes on waits for it, and what this waits
        // for may in turn wait for them.
        let too_long = async {
            self.ring.lost(resource).await;
            tokio::time::sleep(LET_GO).await;
        };
        tokio::select! {
            biased;
            result = handling => result,
            () = too_long => Err(Error::new(Code::OwnerLeft, "the resource went to another controller meanwhile")),
        }
    }

    fn enqueue(
        &self,
        resource: Option<Uuid>,
        stats: &Arc<ServiceStats>,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), Error> {
        if stats.is_full(self.limits.per_service) {
            return Err(Error::new(Code::Unavailable, "the service has too much to do: try again in a moment"));
        }
        let mut load = stats.queued();
        let work = async move {
            load.begin();
            work.await;
        };
        let pushed = match resource {
            Some(key) => self.queues.push(key, work),
            None => {
                // Boxed, so that only a pointer is moved from here into its task.
                self.tasks.spawn(Box::pin(work));
                Ok(())
            }
        };
        pushed.map_err(|full| Error::new(Code::Unavailable, format!("{full}: try again when some are done")))
    }

    fn reply(self: &Arc<Self>, to: &Envelope, result: Result<Box<RawValue>, Error>) {
        let Some(target) = to.headers.reply_to else { return };
        let body = match result {
            Ok(body) => WireReply::Ok(body),
            Err(error) => WireReply::Error(error),
        };
        self.send_about(to, REPLY, target, &body);
    }

    /// Sends a message of the bus itself about a request; nobody answers it.
    fn send_about<B: Serialize>(
        self: &Arc<Self>,
        request: &Envelope,
        name: &'static str,
        target: ControllerId,
        body: &B,
    ) {
        let Ok(body) = to_raw(body) else { return };
        let message = Envelope {
            name: name.to_string(),
            id: Uuid::now_v7(),
            service_id: name.to_string(),
            created_at: self.clock.now().ms(),
            timeout_ms: request.timeout_ms,
            headers: Headers { correlation: Some(request.id), reply_to: None, ..request.headers.clone() },
            body,
        };
        let (bytes, ttl) = (message.encode(), Duration::from_millis(request.timeout_ms));
        let transport = Arc::clone(&self.transport);
        self.tasks.spawn(async move {
            let sent = async { transport.send(target, name, bytes?, ttl).await };
            if let Err(error) = sent.await {
                tracing::warn!(message.name = name, error = error.chain(), "a message of the bus could not be sent");
            }
        });
    }
}

fn too_late(name: &str) -> Error {
    Error::new(Code::DeadlineExceeded, "the deadline passed before the answer came")
        .with_detail(format!("waiting for {name}"))
}

#[cfg(test)]
mod tests;
