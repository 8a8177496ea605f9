//! Who handles which message: filled while the services register, frozen when the bus starts.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::value::RawValue;
use shared::{Code, Error};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use trace::{Kind, Span};
use uuid::Uuid;

use super::envelope::to_raw;
use super::message::{Event, Request};
use super::stats::ServiceStats;
use crate::cx::Cx;

pub(super) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// The resource that a message is about, and the work that handles it.
pub(super) type Opened = (Option<Uuid>, Boxed<Result<Box<RawValue>, Error>>);
type HandlerFn<M> = dyn Fn(Cx, M) -> Boxed<Result<<M as Request>::Reply, Error>> + Send + Sync;

/// The handler of one request type.
pub(super) struct Handler<M: Request> {
    run: Box<HandlerFn<M>>,
    pub(super) stats: Arc<ServiceStats>,
}

impl<M: Request> Handler<M> {
    /// Handles one message, counted, with panics turned into an error.
    pub(super) async fn handle(&self, cx: Cx, message: M) -> Result<M::Reply, Error> {
        let mut span = Span::under(cx.trace, Kind::Server, M::NAME);
        let cx = Cx { trace: span.trace(), ..cx };
        let (request_id, trace) = (Arc::clone(&cx.request_id), cx.trace);
        // Pinned here, so that only a pointer is moved into what runs it.
        let handling = pin!(async {
            match cx.left() {
                Err(late) => Err(late),
                Ok(_) => AssertUnwindSafe((self.run)(cx, message)).catch_unwind().await.unwrap_or_else(|_| {
                    tracing::error!(message.name = M::NAME, "a handler panicked");
                    Err(Error::internal(format_args!("the handler of {} panicked", M::NAME)))
                }),
            }
        });
        let result = trace::within(request_id, trace, handling).await;
        if let Err(error) = &result {
            span.fail(error);
        }
        self.stats.handled(result.is_ok());
        result
    }
}

/// A handler whose message type is known by name only, for what comes from a wire.
pub(super) trait WireHandler: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn service(&self) -> &'static str;
    /// Reads the body; answers the resource that it is about and the work that handles it.
    fn open(self: Arc<Self>, cx: Cx, body: &RawValue) -> Result<Opened, Error>;
    fn stats(&self) -> &Arc<ServiceStats>;
    #[cfg(test)]
    fn round_trips(&self, body: &RawValue) -> Result<Box<RawValue>, Error>;
}

impl<M: Request> WireHandler for Handler<M> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn service(&self) -> &'static str {
        M::SERVICE
    }

    fn open(self: Arc<Self>, cx: Cx, body: &RawValue) -> Result<Opened, Error> {
        let message: M = serde_json::from_str(body.get()).map_err(|e| {
            Error::new(Code::UnknownMessage, format!("the body of {} could not be read", M::NAME))
                .with_detail(e.to_string())
        })?;
        let resource = message.resource();
        Ok((resource, Box::pin(async move { to_raw(&self.handle(cx, message).await?) })))
    }

    fn stats(&self) -> &Arc<ServiceStats> {
        &self.stats
    }

    #[cfg(test)]
    fn round_trips(&self, body: &RawValue) -> Result<Box<RawValue>, Error> {
        let message: M = serde_json::from_str(body.get()).map_err(Error::internal)?;
        to_raw(&message)
    }
}

/// The subscribers of one event type.
pub(super) trait Subscriber: Send + Sync {
    fn deliver_local(&self, event: &dyn Any);
    fn deliver_wire(&self, body: &RawValue);
}

struct Subscription<E: Event> {
    queue: mpsc::Sender<E>,
}

impl<E: Event> Subscription<E> {
    fn deliver(&self, event: E) {
        // Reconcilers repair what a subscriber misses; a publisher is never blocked by a slow one.
        if self.queue.try_send(event).is_err() {
            tracing::warn!(event.name = E::NAME, "a subscriber is too slow or gone; an event was dropped");
        }
    }
}

impl<E: Event> Subscriber for Subscription<E> {
    fn deliver_local(&self, event: &dyn Any) {
        if let Some(event) = event.downcast_ref::<E>() {
            self.deliver(event.clone());
        }
    }

    fn deliver_wire(&self, body: &RawValue) {
        match serde_json::from_str(body.get()) {
            Ok(event) => self.deliver(event),
            Err(error) => tracing::warn!(event.name = E::NAME, %error, "an event could not be read"),
        }
    }
}

/// Collects handlers and subscribers while the services register.
#[derive(Default)]
pub struct Registry {
    pub(super) handlers: HashMap<&'static str, Arc<dyn WireHandler>>,
    pub(super) subscribers: HashMap<&'static str, Vec<Arc<dyn Subscriber>>>,
    pub(super) services: BTreeMap<&'static str, Service>,
    tasks: TaskTracker,
}

/// A service as the bus knows it.
#[derive(Debug, Default)]
pub struct Service {
    /// Its counters.
    pub stats: Arc<ServiceStats>,
    /// The names of its messages.
    pub messages: Vec<&'static str>,
    /// Whether it was switched off; then it has no messages.
    pub disabled: bool,
}

/// How many events may wait for one subscriber.
const EVENT_QUEUE: usize = 4096;

impl Registry {
    /// An empty registry; the tasks of subscribers are owned by `tasks`.
    #[must_use]
    pub fn new(tasks: TaskTracker) -> Self {
        Self { tasks, ..Self::default() }
    }

    /// The names of the services that registered so far.
    #[must_use]
    pub fn service_names(&self) -> Vec<&'static str> {
        self.services.keys().copied().collect()
    }

    /// Lets `handle` answer every `M`. A second handler for the same message is a defect and replaces
    /// nothing: it is refused with a panic at start, before anything is accepted.
    pub fn serve<M, F, Fut>(&mut self, handle: F)
    where
        M: Request,
        F: Fn(Cx, M) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply, Error>> + Send + 'static,
    {
        let service = self.services.entry(M::SERVICE).or_default();
        service.messages.push(M::NAME);
        let handler = Handler::<M> {
            run: Box::new(move |cx, message| Box::pin(handle(cx, message))),
            stats: Arc::clone(&service.stats),
        };
        let before = self.handlers.insert(M::NAME, Arc::new(handler));
        assert!(before.is_none(), "two handlers for {}", M::NAME);
    }

    /// Notes a service that is not started: its messages are answered with `service_disabled`.
    pub fn disable(&mut self, service: &'static str) {
        self.services.entry(service).or_default().disabled = true;
    }

    /// Bounds what a service may have waiting and in flight, instead of the usual number.
    ///
    /// # Errors
    /// `invalid_request` when no such service has registered.
    pub fn limit(&mut self, service: &str, most: usize) -> Result<(), Error> {
        match self.services.get(service) {
            Some(known) => {
                known.stats.limit(most as u64);
                Ok(())
            }
            None => {
                let known: Vec<&str> = self.services.keys().copied().collect();
                let text = format!("there is no service {service}: there are {}", known.join(", "));
                Err(Error::invalid("bus.service_limits", text))
            }
        }
    }

    /// Lets `handle` see every `E`, one at a time, in the order of publication.
    pub fn subscribe<E, F, Fut>(&mut self, handle: F)
    where
        E: Event,
        F: Fn(E) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (queue, mut events) = mpsc::channel::<E>(EVENT_QUEUE);
        self.subscribers.entry(E::NAME).or_default().push(Arc::new(Subscription { queue }));
        self.tasks.spawn(async move {
            while let Some(event) = events.recv().await {
                if AssertUnwindSafe(handle(event)).catch_unwind().await.is_err() {
                    tracing::error!(event.name = E::NAME, "a subscriber panicked");
                }
            }
        });
    }
}
