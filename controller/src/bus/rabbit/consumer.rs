//! Receives: from this controller's queues into the inbox of the bus.
//!
//! A message is acknowledged when it is in the inbox, which is bounded: what the bus does not take stays
//! with the broker. One acknowledgement stands for many messages, or for the last ones before a moment of
//! silence: each would wake a thread here and a process there. When the broker ends a consumer, because
//! somebody removed its queue, all of it is made again.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use shared::id::ControllerId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::topology::{self, Queues};

/// Messages that are taken together at most.
const BATCH: usize = 256;
/// Silence after which what was received is acknowledged, however little it is.
const SILENCE: Duration = Duration::from_millis(10);
/// Pause before queues that somebody removed are made again.
const PAUSE: Duration = Duration::from_millis(200);
/// Messages that are remembered, to know them again: more than can be unacknowledged in all queues.
const REMEMBERED: usize = 16_384;

/// What receives, and what outlives one connection.
pub(super) struct Receiver {
    /// This controller, as its messages name it.
    me: String,
    prefetch: u16,
    inbox: mpsc::Sender<Vec<u8>>,
    seen: Seen,
}

/// Why a round of receiving ended without an error.
enum End {
    Stopped,
    /// The broker ended a consumer.
    Cancelled,
}

impl Receiver {
    pub(super) fn new(me: ControllerId, prefetch: u16, inbox: mpsc::Sender<Vec<u8>>) -> Self {
        Self { me: me.to_string(), prefetch, inbox, seen: Seen::default() }
    }

    /// Receives until the connection breaks or `stop`; calls `up` each time that queues and consumers
    /// are there.
    pub(super) async fn run(
        &mut self,
        connection: &Connection,
        queues: &Queues,
        mut up: impl FnMut(),
        stop: &CancellationToken,
    ) -> lapin::Result<()> {
        loop {
            let mut channel = connection.create_channel().await?;
            if let Err(error) = queues.declare(&channel).await {
                if !topology::is_of_another_kind(&error) {
                    return Err(error);
                }
                // Another version of this controller has left them; the broker has closed the channel.
                tracing::info!(%error, "queues of another version are made anew");
                channel = connection.create_channel().await?;
                queues.remove_mine(&channel).await?;
                queues.declare(&channel).await?;
            }
            channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
            let mut consumers = Vec::new();
            for queue in queues.mine() {
                let options = BasicConsumeOptions::default();
                let tag = queue.as_str().into();
                consumers.push(channel.basic_consume(queue.into(), tag, options, FieldTable::default()).await?);
            }
            up();
            match self.receive(&channel, consumers, stop).await? {
                End::Stopped => return Ok(()),
                End::Cancelled => {
                    tracing::warn!("the message broker removed a queue of this controller: it is made again");
                    channel.close(200, "again".into()).await?;
                    if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn receive(
        &mut self,
        channel: &Channel,
        consumers: Vec<Consumer>,
        stop: &CancellationToken,
    ) -> lapin::Result<End> {
        // The end of one of them must be seen, which the selection alone would hide.
        let ending =
            consumers.into_iter().map(|consumer| consumer.map(Some).chain(stream::once(async { None })).boxed());
        let mut deliveries = stream::select_all(ending).ready_chunks(BATCH);
        let (mut handed, inbox) = (Handed::default(), self.inbox.clone());
        // So few of those that the broker sends at once that it always has leave to send more.
        let many = u64::from(self.prefetch / 4).max(1);
        loop {
            let next = stop.run_until_cancelled(deliveries.next());
            let next = match handed.unacknowledged() {
                0 => Ok(next.await),
                _ => tokio::time::timeout(SILENCE, next).await,
            };
            let (batch, mut enough) = match next {
                Ok(Some(Some(batch))) => (batch, many),
                Ok(_) => return Ok(End::Stopped),
                Err(_) => (Vec::new(), 1),
            };
            let mut cancelled = false;
            for delivery in batch {
                let Some(delivery) = delivery.transpose()? else {
                    (cancelled, enough) = (true, 1);
                    continue;
                };
                let tag = delivery.delivery_tag;
                // Before it counts as received: what has no place comes again.
                let place = match inbox.try_reserve() {
                    Ok(place) => Some(place),
                    Err(TrySendError::Full(())) => {
                        stop.run_until_cancelled(inbox.reserve()).await.and_then(|place| place.ok())
                    }
                    Err(TrySendError::Closed(())) => None,
                };
                let Some(place) = place else {
                    // The bus takes no more; what it sends still goes out until `stop`.
                    stop.cancelled().await;
                    return Ok(End::Stopped);
                };
                if let Some(bytes) = self.accept(delivery) {
                    place.send(bytes);
                }
                handed.add(tag);
            }
            if handed.unacknowledged() >= enough {
                channel.basic_ack(handed.acknowledge(), BasicAckOptions { multiple: true }).await?;
            }
            if cancelled {
                for tag in handed.beyond {
                    channel.basic_ack(tag, BasicAckOptions::default()).await?;
                }
                return Ok(End::Cancelled);
            }
        }
    }

    /// The message, unless it is this controller's own broadcast or was received before.
    fn accept(&mut self, delivery: Delivery) -> Option<Vec<u8>> {
        let properties = &delivery.properties;
        let from = properties.app_id().as_ref().map_or("", |id| id.as_str());
        let number = properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok());
        if from == self.me && delivery.exchange.as_str() == topology::BROADCAST {
            return None;
        }
        let new = number.is_none_or(|number| self.seen.insert(xxh3_64_with_seed(from.as_bytes(), number)));
        (new || !delivery.redelivered).then_some(delivery.data)
    }
}

/// Which deliveries of a channel were handed over, so that one acknowledgement can stand for many. They
/// need not come in the order of their numbers, because each queue has its own stream.
#[derive(Default)]
struct Handed {
    /// All up to here were handed over.
    up_to: u64,
    acknowledged: u64,
    beyond: BTreeSet<u64>,
}

impl Handed {
    fn add(&mut self, tag: u64) {
        self.beyond.insert(tag);
        while self.beyond.remove(&(self.up_to + 1)) {
            self.up_to += 1;
        }
    }

    /// How many the next acknowledgement can stand for.
    fn unacknowledged(&self) -> u64 {
        self.up_to - self.acknowledged
    }

    /// Takes all of these for acknowledged: by the number that is answered, and all before it.
    fn acknowledge(&mut self) -> u64 {
        self.acknowledged = self.up_to;
        self.up_to
    }
}

/// The messages that were received last. The broker sends again what it saw no acknowledgement of, also
/// when it was lost with the connection.
#[derive(Default)]
struct Seen {
    set: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Seen {
    /// Whether it is new.
    fn insert(&mut self, message: u64) -> bool {
        if !self.set.insert(message) {
            return false;
        }
        self.order.push_back(message);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_acknowledgement_stands_for_all_that_were_handed_over_and_no_other() {
        let mut handed = Handed::default();
        assert_eq!(handed.unacknowledged(), 0);
        [1, 2, 5, 4].into_iter().for_each(|tag| handed.add(tag));
        assert_eq!((handed.unacknowledged(), handed.acknowledge(), handed.unacknowledged()), (2, 2, 0));
        handed.add(3);
        assert_eq!((handed.unacknowledged(), handed.acknowledge()), (3, 5));
        assert!(handed.beyond.is_empty());
    }

    #[test]
    fn what_was_received_is_known_again_for_a_while() {
        let mut seen = Seen::default();
        assert!(seen.insert(0));
        assert!(!seen.insert(0));
        (1..=REMEMBERED as u64).for_each(|n| assert!(seen.insert(n)));
        assert!(seen.insert(0));
        assert_eq!(seen.set.len(), REMEMBERED);
    }
}
