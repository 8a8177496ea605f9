//! The transport between controllers: RabbitMQ.
//!
//! ```text
//! send ──► waiting room (bounded) ──► publisher ──► broker ──► consumer ──► inbox of the bus (bounded)
//!                ▲                        │ confirms
//!                └── waits while the broker is away or blocked, at most its time to live
//! ```
//!
//! - [`settings`]: where the broker is, and as whom to go there. - [`topology`]: exchanges and queues.
//! - [`connection`]: one connection, which can also be given up. - [`session`]: both connections of one
//!   time that the broker is there, one after the other, with pauses between.
//! - [`publisher`]: many messages at a time, each until it is confirmed. - [`consumer`]: messages into
//!   the inbox, each acknowledged when it is there.
//!
//! Two connections, because a broker that is short of memory stops reading from whoever publishes:
//! what is received must still be acknowledged then, or the broker gets no memory back.
//!
//! Delivery is at most once: a request of which nobody knows whether it arrived is not sent again, its
//! sender is told. What may arrive twice without harm, replies and cancels, is sent again.

mod connection;
mod consumer;
mod publisher;
mod session;
pub mod settings;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::id::ControllerId;
use shared::{Code, Error};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::transport::{Health, Told, Transport};
use crate::clock::Clock;
use publisher::{Failure, Parcel};
pub use settings::Settings;
use topology::{BROADCAST, P2P, Queues};

/// Messages that may wait for the broker; more wait in the tasks that send them.
const WAITING_ROOM: usize = 4096;
/// Received messages that may wait for the bus. When it is full, nothing is taken from the broker.
const INBOX: usize = 1024;
/// How long an event is worth something to another controller.
const BROADCAST_TTL: Duration = Duration::from_secs(30);
/// How long leaving may take: a queue that stays is one in which messages to nobody are kept until it expires.
const LEAVE: Duration = Duration::from_secs(15);

/// The bus over RabbitMQ, of one controller.
pub struct RabbitTransport {
    outgoing: mpsc::Sender<Parcel>,
    health: watch::Receiver<Health>,
    commands: mpsc::Sender<session::Command>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Held while leaving, so that it is done once.
    leaving: Mutex<()>,
}

/// Whether the broker lets this controller in, and where it is.
///
/// # Errors
/// Why not, without a password.
pub async fn probe(settings: &Settings) -> Result<String, String> {
    let destination = settings.destination().await.map_err(|error| error.to_string())?;
    let link = connection::Link::open(&destination, ControllerId::new(), "check").await;
    let link = link.map_err(|error| error.to_string())?;
    let place = link.place.clone();
    link.close().await;
    Ok(place)
}

impl RabbitTransport {
    /// A transport for the controller `me` with these services; what it receives comes out of the
    /// receiver. It connects by itself, now and whenever the connection is lost: this does not wait.
    #[must_use]
    pub fn start(
        settings: Settings,
        me: ControllerId,
        services: Vec<&'static str>,
        clock: Clock,
    ) -> (Arc<Self>, mpsc::Receiver<Vec<u8>>) {
        let (outgoing, waiting) = mpsc::channel(WAITING_ROOM);
        let (inbox, received) = mpsc::channel(INBOX);
        let (commands, orders) = mpsc::channel(16);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (condition, health) = session::Condition::new(clock);
        let session =
            session::Session { settings: Arc::new(settings), me, queues: Queues::new(me, services), condition, inbox };
        tasks.spawn(session.run(waiting, orders, stop.clone()));
        (Arc::new(Self { outgoing, health, commands, stop, tasks, leaving: Mutex::default() }), received)
    }

    /// Waits until it is connected; whether it is in time.
    pub async fn wait_connected(&self, at_most: Duration) -> bool {
        let mut health = self.health.clone();
        let connected = health.wait_for(|health| health.connected);
        matches!(tokio::time::timeout(at_most, connected).await, Ok(Ok(_)))
    }

    /// Hands a message to the publisher; what is answered resolves when the broker has taken it.
    async fn hand_over(
        &self,
        exchange: &'static str,
        key: String,
        resend: bool,
        (bytes, ttl): (Vec<u8>, Duration),
    ) -> Result<impl Future<Output = Result<(), Failure>> + Send + use<>, Failure> {
        let (done, outcome) = oneshot::channel();
        let deadline = Instant::now() + ttl;
        let parcel = Parcel { exchange, key, bytes: bytes.into(), deadline, resend, done };
        let handed_over = tokio::time::timeout_at(deadline, self.outgoing.send(parcel)).await;
        handed_over.map_err(|_| Failure::Late)?.map_err(|_| Failure::Stopping)?;
        let stop = self.stop.clone();
        Ok(async move {
            // Unanswered when the publisher ended or took the time for over.
            let unanswered = || if stop.is_cancelled() { Failure::Stopping } else { Failure::Late };
            match tokio::time::timeout_at(deadline, outcome).await {
                Ok(outcome) => outcome.map_err(|_| unanswered())?,
                Err(_) => Err(Failure::Late),
            }
        })
    }

    fn error(&self, failure: Failure) -> Error {
        error(&self.health, failure)
    }
}

/// What a sender is told, with what is known about the broker now.
fn error(health: &watch::Receiver<Health>, failure: Failure) -> Error {
    let health = health.borrow();
    let why = health.error.as_deref().unwrap_or("no reason is known");
    let text = match failure {
        Failure::Late if !health.connected => format!("the message broker cannot be reached: {why}"),
        Failure::Late if health.blocked => format!("the message broker takes no messages for now: {why}"),
        Failure::Late => "the message broker did not take the message in time".to_string(),
        Failure::Refused => "the message broker refused the message: the queue of its receiver is full".to_string(),
        Failure::Unknown => {
            "the connection to the message broker was lost before it took the message; it may have arrived".into()
        }
        Failure::Stopping => "the bus is stopping".to_string(),
        Failure::Returned => "there is no such queue".to_string(),
    };
    Error::new(Code::Unavailable, text)
}

#[async_trait]
impl Transport for RabbitTransport {
    async fn send(&self, to: ControllerId, service: &str, bytes: Vec<u8>, ttl: Duration) -> Result<(), Error> {
        let key = topology::key(service, to);
        // A second reply or cancel finds nobody waiting; a second request would be done twice.
        let resend = topology::is_of_the_bus(service);
        let taken = async { self.hand_over(P2P, key, resend, (bytes, ttl)).await?.await };
        taken.await.map_err(|failure| match failure {
            Failure::Returned => {
                Error::new(Code::OwnerLeft, format!("controller {to} has left: nothing on it receives {service}"))
            }
            other => self.error(other),
        })
    }

    async fn broadcast(&self, bytes: Vec<u8>) -> Result<Told, Error> {
        // Nobody waits for an event, and who missed one asks again after the reconnect.
        if !self.health.borrow().connected {
            return Err(self.error(Failure::Late));
        }
        let sent = self.hand_over(BROADCAST, String::new(), false, (bytes, BROADCAST_TTL)).await;
        let (taken, health) = (sent.map_err(|failure| self.error(failure))?, self.health.clone());
        Ok(Box::pin(async move { taken.await.map_err(|failure| error(&health, failure)) }))
    }

    async fn forget(&self, controller: ControllerId) {
        let (done, ended) = oneshot::channel();
        // While the broker is away there is nobody to ask; queues without a consumer go by themselves.
        if self.health.borrow().connected
            && self.commands.send(session::Command::Forget(controller, done)).await.is_ok()
        {
            let _ = tokio::time::timeout(LEAVE, ended).await;
        }
    }

    fn watch(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    async fn close(&self) {
        let _once = self.leaving.lock().await;
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(LEAVE + LEAVE, self.tasks.wait()).await.is_err() {
            tracing::warn!("the message broker did not let go in time");
        }
    }
}

impl Drop for RabbitTransport {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
