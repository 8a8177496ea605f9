//! Sends messages over one connection, many at a time, each until the broker confirms it.
//!
//! One task publishes, because the order in which messages get their numbers must be the order in which
//! they are sent, and because whoever sends side by side shares one write to the socket.
//!
//! A message that no queue takes comes back. The client library hands a returned message to whichever
//! confirm it handles next, which after a confirm of several at once need not be the message's own: so
//! each carries a number, and a return counts for the message that has it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use shared::id::ControllerId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Messages that may be unconfirmed at a time.
const UNCONFIRMED: usize = 1024;
/// Not written to the broker's disk.
const TRANSIENT: u8 = 1;

/// A message on its way to the broker.
pub(super) struct Parcel {
    pub(super) exchange: &'static str,
    /// Routing key; the queue, for one receiver.
    pub(super) key: String,
    pub(super) bytes: Bytes,
    /// Worthless afterwards.
    pub(super) deadline: Instant,
    /// Whether it may arrive twice.
    pub(super) resend: bool,
    /// Told how it went.
    pub(super) done: oneshot::Sender<Result<(), Failure>>,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no such queue.
    Returned,
    /// The queue is full.
    Refused,
    /// The time is over.
    Late,
    /// The connection was lost before the broker confirmed it.
    Unknown,
    /// The bus is stopping.
    Stopping,
}

/// Waiting messages, and what outlives one connection.
pub(super) struct Publisher {
    /// This controller.
    me: ShortString,
    waiting: mpsc::Receiver<Parcel>,
    /// Taken from `waiting` and not sent, or to be sent again.
    held: VecDeque<Parcel>,
    /// The number of the next message.
    next: u64,
}

impl Publisher {
    pub(super) fn new(me: ControllerId, waiting: mpsc::Receiver<Parcel>) -> Self {
        // A controller that comes back under its old id begins with numbers that nobody has seen.
        Self { me: me.to_string().into(), waiting, held: VecDeque::new(), next: rand::random_range(0..u64::MAX / 2) }
    }

    /// Sends what waits until the channel breaks or `stop`; the error is why it broke. While `blocked`,
    /// nothing is sent: what the broker does not read now it would read when nobody waits any more.
    pub(super) async fn run(
        &mut self,
        channel: &Channel,
        mut blocked: watch::Receiver<bool>,
        stop: &CancellationToken,
    ) -> Option<lapin::Error> {
        let mut confirms = FuturesUnordered::new();
        let mut sent: HashMap<u64, Parcel> = HashMap::new();
        let mut batch = Vec::new();
        let broken = loop {
            while sent.len() < UNCONFIRMED && !*blocked.borrow() {
                let Some(parcel) = self.held.pop_front() else { break };
                if let Some((number, confirm)) = self.publish(channel, &parcel) {
                    confirms.push(confirm.map(move |confirmed| (number, confirmed)));
                    sent.insert(number, parcel);
                }
            }
            let open = sent.len() < UNCONFIRMED && self.held.is_empty() && !*blocked.borrow();
            tokio::select! {
                biased;
                () = stop.cancelled() => break None,
                Some(first) = confirms.next(), if !confirms.is_empty() => {
                    batch.push(first);
                    while let Some(Some(next)) = confirms.next().now_or_never() {
                        batch.push(next);
                    }
                    // A return may be with a confirm that the library is handling just now: this waits
                    // for the lock under which it handles all that one confirm of the broker means.
                    drop(channel.wait_for_confirms().now_or_never());
                    while let Some(Some(next)) = confirms.next().now_or_never() {
                        batch.push(next);
                    }
                    if let Some(error) = settle(&mut batch, &mut sent) {
                        break Some(error);
                    }
                }
                Some(parcel) = self.waiting.recv(), if open => {
                    self.held.push_back(parcel);
                    while self.held.len() + sent.len() < UNCONFIRMED && let Ok(parcel) = self.waiting.try_recv() {
                        self.held.push_back(parcel);
                    }
                }
                Ok(()) = blocked.changed() => {}
            }
        };
        // In the order in which they were sent.
        let mut unknown: Vec<_> = sent.into_iter().collect();
        unknown.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        for (_, parcel) in unknown {
            self.unknown(parcel);
        }
        broken
    }

    /// Begins to send; nothing is begun for what nobody waits for any more.
    fn publish(
        &mut self,
        channel: &Channel,
        parcel: &Parcel,
    ) -> Option<(u64, impl Future<Output = lapin::Result<Confirmation>> + use<>)> {
        let left = parcel.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || parcel.done.is_closed() {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let properties = BasicProperties::default()
            .with_delivery_mode(TRANSIENT)
            .with_expiration(left.as_millis().max(1).to_string().into())
            .with_app_id(self.me.clone())
            .with_message_id(number.to_string().into());
        let options = BasicPublishOptions { mandatory: !parcel.key.is_empty(), immediate: false };
        let (channel, exchange, key) = (channel.clone(), parcel.exchange.into(), parcel.key.as_str().into());
        let bytes = parcel.bytes.clone();
        let sending = async move {
            let confirm = channel.basic_publish(exchange, key, options, &bytes, properties).await?;
            // The library has its copy.
            drop(bytes);
            confirm.await
        };
        Some((number, sending))
    }

    /// A message of which nobody knows whether it arrived.
    fn unknown(&mut self, parcel: Parcel) {
        if parcel.resend {
            self.held.push_front(parcel);
        } else {
            // The sender may have stopped waiting.
            let _ = parcel.done.send(Err(Failure::Unknown));
        }
    }
}

/// Tells the senders of these confirmed messages how it went. What failed with the connection stays in
/// `sent`, and its error is answered.
fn settle(
    batch: &mut Vec<(u64, lapin::Result<Confirmation>)>,
    sent: &mut HashMap<u64, Parcel>,
) -> Option<lapin::Error> {
    let mut broken = None;
    for (_, confirmed) in batch.iter() {
        if let Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) = confirmed {
            let number = returned.properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok());
            tell(number.and_then(|number| sent.remove(&number)), Err(Failure::Returned));
        }
    }
    for (number, confirmed) in batch.drain(..) {
        match confirmed {
            Ok(Confirmation::Ack(_)) => tell(sent.remove(&number), Ok(())),
            Ok(Confirmation::Nack(_)) => tell(sent.remove(&number), Err(Failure::Refused)),
            Ok(Confirmation::NotRequested) => tell(sent.remove(&number), Err(Failure::Unknown)),
            Err(error) => broken = Some(error),
        }
    }
    broken
}

fn tell(parcel: Option<Parcel>, outcome: Result<(), Failure>) {
    if let Some(parcel) = parcel {
        // The sender may have stopped waiting.
        let _ = parcel.done.send(outcome);
    }
}
