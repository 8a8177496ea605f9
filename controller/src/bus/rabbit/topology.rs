//! Exchanges and queues: their names, what they are made with, how they are made and removed.
//!
//! Static: per controller one queue for each of its services, one for replies and one for broadcasts.
//! Nothing for a host, a resource or a call.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use shared::id::ControllerId;

/// Exchange of what is for one controller; the routing key is the queue's name.
pub(super) const P2P: &str = "kring.p2p";
/// Exchange of what is for all.
pub(super) const BROADCAST: &str = "kring.broadcast";

/// How long a queue without a consumer is kept, in milliseconds: longer than a broker's restart, and
/// nobody has to come back to remove what a crashed controller left.
const EXPIRES_MS: u32 = 600_000;
/// Messages that a queue keeps at most.
const MAX_LENGTH: i64 = 20_000;

/// The queues of one controller.
#[derive(Clone, Debug)]
pub(super) struct Queues {
    me: ControllerId,
    services: Vec<&'static str>,
}

/// The queue, and so the routing key, of a service on a controller. Messages of the bus itself, such as
/// `bus.Reply`, go to the queue of replies.
pub(super) fn key(service: &str, controller: ControllerId) -> String {
    match is_of_the_bus(service) {
        true => format!("kring.reply.{controller}"),
        false => format!("kring.message.{service}.{controller}"),
    }
}

/// Whether it is no service but the bus itself that the message is for.
pub(super) fn is_of_the_bus(service: &str) -> bool {
    service.starts_with("bus.")
}

/// Whether the broker refused to declare something that is there with other arguments.
pub(super) fn is_of_another_kind(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.kind() == &AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
}

/// Whether the broker has closed a channel with it, and not the connection.
pub(super) fn is_of_a_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

impl Queues {
    pub(super) fn new(me: ControllerId, services: Vec<&'static str>) -> Self {
        Self { me, services }
    }

    /// The queues that are bound to [`P2P`] of a controller with these services.
    pub(super) fn direct(&self, controller: ControllerId) -> impl Iterator<Item = String> {
        let services = self.services.iter().map(move |service| key(service, controller));
        services.chain([key("bus.Reply", controller)])
    }

    /// The queue of events of a controller.
    pub(super) fn broadcast(controller: ControllerId) -> String {
        format!("kring.broadcast.{controller}")
    }

    /// All queues of this controller.
    pub(super) fn mine(&self) -> Vec<String> {
        self.direct(self.me).chain([Self::broadcast(self.me)]).collect()
    }

    /// Makes exchanges, queues and bindings that are not there.
    pub(super) async fn declare(&self, channel: &Channel) -> lapin::Result<()> {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        for (exchange, kind) in [(P2P, ExchangeKind::Direct), (BROADCAST, ExchangeKind::Fanout)] {
            channel.exchange_declare(exchange.into(), kind, durable, FieldTable::default()).await?;
        }
        let mine = self.direct(self.me).map(|queue| (queue, P2P, "reject-publish"));
        // One full queue of events would have every event of everybody refused: there the oldest go.
        let broadcast = [(Self::broadcast(self.me), BROADCAST, "drop-head")];
        for (queue, exchange, overflow) in mine.chain(broadcast) {
            declare_queue(channel, &queue, overflow).await?;
            let bind = QueueBindOptions::default();
            let key = queue.as_str().into();
            channel.queue_bind(queue.as_str().into(), exchange.into(), key, bind, FieldTable::default()).await?;
        }
        Ok(())
    }

    /// Removes this controller's queues, whatever is in them.
    pub(super) async fn remove_mine(&self, channel: &Channel) -> lapin::Result<()> {
        for queue in self.mine() {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }

    /// Removes the queues of a controller that left, taking it for one with the services of this one.
    /// Queues that somebody still reads stay: then it has not left, or comes back.
    pub(super) async fn remove_of(&self, controller: ControllerId, connection: &Connection) -> lapin::Result<()> {
        let unused = QueueDeleteOptions { if_unused: true, ..QueueDeleteOptions::default() };
        let channel = connection.create_channel().await?;
        for queue in self.direct(controller).chain([Self::broadcast(controller)]) {
            // The broker closes the channel when it refuses, which is the end of this.
            channel.queue_delete(queue.into(), unused).await?;
        }
        channel.close(200, "done".into()).await
    }
}

async fn declare_queue(channel: &Channel, queue: &str, overflow: &str) -> lapin::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS.cast_signed()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_LENGTH));
    arguments.insert("x-overflow".into(), AMQPValue::LongString(overflow.into()));
    channel.queue_declare(queue.into(), options, arguments).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_and_cancels_share_a_queue_and_services_have_their_own() {
        let me = ControllerId::new();
        let queues = Queues::new(me, vec!["host", "vm"]);
        assert_eq!(
            queues.mine(),
            [
                format!("kring.message.host.{me}"),
                format!("kring.message.vm.{me}"),
                format!("kring.reply.{me}"),
                format!("kring.broadcast.{me}"),
            ]
        );
        assert_eq!(key("bus.Cancel", me), key("bus.Reply", me));
        assert_eq!(key("vm", me), queues.mine()[1]);
    }
}
