//! The times that the broker is there: connect, make what is needed, send and receive until something
//! breaks; then again, after a pause that grows.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use lapin::Event;
use lapin::options::ConfirmSelectOptions;
use shared::id::ControllerId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::LEAVE;
use super::connection::{self, Link};
use super::consumer::Receiver;
use super::publisher::{Parcel, Publisher};
use super::settings::Settings;
use super::topology::{self, Queues};
use crate::bus::transport::Health;
use crate::clock::Clock;

/// First pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is asked of a session.
pub(super) enum Command {
    /// Remove the queues of a controller that left, and say when it is done.
    Forget(ControllerId, oneshot::Sender<()>),
}

/// How it is, as everybody may see it.
pub(super) struct Condition {
    health: watch::Sender<Health>,
    clock: Clock,
}

impl Condition {
    pub(super) fn new(clock: Clock) -> (Self, watch::Receiver<Health>) {
        let error = Some("it was not reached yet".to_string());
        let first = Health { broker: true, connected: false, error, ..Health::local(clock.now()) };
        let (health, seen) = watch::channel(first);
        (Self { health, clock }, seen)
    }

    /// Queues and consumers are there, for the first time or again.
    fn up(&self, place: &str, first: bool) {
        let now = self.clock.now();
        self.health.send_modify(|health| {
            health.reconnects += u64::from(!first);
            if !health.connected {
                (health.connected, health.blocked, health.since, health.error) = (true, false, now, None);
            }
        });
        tracing::info!(broker = place, "the message broker is connected");
    }

    fn away(&self, error: &str) {
        let now = self.clock.now();
        self.health.send_modify(|health| {
            // Once, not at each attempt.
            if health.connected || health.error.as_deref() != Some(error) {
                tracing::warn!(error, "the message broker cannot be reached: trying again until it can");
            }
            if health.connected {
                health.since = now;
            }
            (health.connected, health.blocked) = (false, false);
            health.error = Some(error.to_string());
        });
    }

    fn blocked(&self, reason: Option<String>) {
        match &reason {
            Some(reason) => tracing::warn!(reason, "the message broker takes no messages for now"),
            None => tracing::info!("the message broker takes messages again"),
        }
        let now = self.clock.now();
        self.health.send_modify(|health| {
            (health.blocked, health.since, health.error) = (reason.is_some(), now, reason);
        });
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Connect(#[from] connection::Error),
    #[error(transparent)]
    Lapin(#[from] lapin::Error),
    #[error("the connection ended")]
    Ended,
}

/// What is the same in all sessions.
pub(super) struct Session {
    pub(super) settings: Arc<Settings>,
    pub(super) me: ControllerId,
    pub(super) queues: Queues,
    pub(super) condition: Condition,
    pub(super) inbox: mpsc::Sender<Vec<u8>>,
}

impl Session {
    /// One session after the other until `stop`, then leaves in order.
    pub(super) async fn run(
        self,
        waiting: mpsc::Receiver<Parcel>,
        mut commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) {
        let mut publisher = Publisher::new(self.me, waiting);
        let mut receiver = Receiver::new(self.me, self.settings.prefetch, self.inbox.clone());
        let (mut pause, mut was_up) = (FIRST_PAUSE, false);
        while !stop.is_cancelled() {
            let begun = CancellationToken::new();
            let mut parts = (&mut publisher, &mut receiver, &mut commands);
            let ended = self.once(&mut parts, &begun, was_up, &stop).await;
            if begun.is_cancelled() {
                (was_up, pause) = (true, FIRST_PAUSE);
            }
            let Err(error) = ended else { break };
            self.condition.away(&error.to_string());
            // Many controllers lose a broker at the same moment and shall not come back at the same.
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            stop.run_until_cancelled(tokio::time::sleep(jittered)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One session; `begun` is cancelled when it is up. Ends well only by `stop`.
    async fn once(
        &self,
        (publisher, receiver, commands): &mut (&mut Publisher, &mut Receiver, &mut mpsc::Receiver<Command>),
        begun: &CancellationToken,
        was_up: bool,
        stop: &CancellationToken,
    ) -> Result<(), Broken> {
        let opening = self.open();
        let Some(opened) = stop.run_until_cancelled(opening).await else { return Ok(()) };
        let (outgoing, incoming, channel) = opened?;
        // Cancelled by whichever part ends first, so that all end, and what is on its way is accounted for.
        let over = stop.child_token();
        let _ends = over.clone().drop_guard();
        let (block, blocked) = watch::channel(false);
        let publishing = async {
            tokio::select! {
                () = begun.cancelled() => {}
                () = over.cancelled() => return None,
            }
            let broken = publisher.run(&channel, blocked, &over).await;
            over.cancel();
            broken.map(Broken::Lapin)
        };
        let consuming = async {
            let up = || {
                self.condition.up(&incoming.place, !was_up && !begun.is_cancelled());
                begun.cancel();
            };
            let received = receiver.run(&incoming.connection, &self.queues, up, &over);
            let broken = over.run_until_cancelled(received).await.and_then(Result::err);
            over.cancel();
            broken.map(Broken::Lapin)
        };
        let watching = async {
            let events = [outgoing.connection.events_listener().boxed(), incoming.connection.events_listener().boxed()];
            let broken = over.run_until_cancelled(self.watch(futures_util::stream::select_all(events), &block)).await;
            over.cancel();
            broken
        };
        let obeying = over.run_until_cancelled(async {
            while let Some(Command::Forget(controller, done)) = commands.recv().await {
                if let Err(error) = self.queues.remove_of(controller, &incoming.connection).await {
                    tracing::info!(controller.id = %controller, %error, "queues of a controller that left stay until nobody reads them");
                }
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        });
        let (published, consumed, seen, _) = tokio::join!(publishing, consuming, watching, obeying);
        if stop.is_cancelled() {
            self.leave(outgoing, incoming).await;
            return Ok(());
        }
        Err(seen.or(published).or(consumed).unwrap_or(Broken::Ended))
    }

    async fn open(&self) -> Result<(Link, Link, lapin::Channel), Broken> {
        let destination = self.settings.destination().await.map_err(connection::Error::from)?;
        let outgoing = Link::open(&destination, self.me, "sends").await?;
        let incoming = Link::open(&destination, self.me, "receives").await?;
        let channel = outgoing.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok((outgoing, incoming, channel))
    }

    /// Follows what the connections say of themselves until one breaks.
    async fn watch(&self, mut events: impl Stream<Item = Event> + Unpin, block: &watch::Sender<bool>) -> Broken {
        while let Some(event) = events.next().await {
            match event {
                // A channel was closed, such as by a refusal to remove a queue: who used it is told, and nobody else.
                Event::Error(error) if topology::is_of_a_channel(&error) => {}
                Event::Error(error) => return error.into(),
                Event::ConnectionBlocked(reason) => {
                    block.send_replace(true);
                    self.condition.blocked(Some(reason));
                }
                Event::ConnectionUnblocked => {
                    block.send_replace(false);
                    self.condition.blocked(None);
                }
                _ => {}
            }
        }
        Broken::Ended
    }

    /// Removes what is kept for this controller, and closes.
    async fn leave(&self, outgoing: Link, incoming: Link) {
        let leaving = async {
            let channel = incoming.connection.create_channel().await?;
            self.queues.remove_mine(&channel).await?;
            tokio::join!(outgoing.close(), incoming.close());
            Ok::<(), lapin::Error>(())
        };
        match tokio::time::timeout(LEAVE, leaving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "queues of this controller stay until they expire"),
            Err(_) => {
                tracing::info!("the message broker did not answer: queues of this controller stay until they expire");
            }
        }
    }
}
