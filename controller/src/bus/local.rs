//! The transport of a controller that is alone: messages come out where they went in.

use std::time::Duration;

use async_trait::async_trait;
use shared::id::ControllerId;
use shared::{Code, Error};
use tokio::sync::{mpsc, watch};

use super::transport::{Health, Told, Transport};
use crate::clock::Clock;

/// Hands messages back to the controller that sent them, through a bounded queue.
pub struct LocalTransport {
    me: ControllerId,
    queue: mpsc::Sender<Vec<u8>>,
    health: watch::Sender<Health>,
}

impl LocalTransport {
    /// A transport whose messages come out of the receiver; at most `bound` wait.
    #[must_use]
    pub fn new(me: ControllerId, bound: usize) -> (Self, mpsc::Receiver<Vec<u8>>) {
        let (queue, messages) = mpsc::channel(bound);
        (Self { me, queue, health: watch::Sender::new(Health::local(Clock::default().now())) }, messages)
    }
}

#[async_trait]
impl Transport for LocalTransport {
    async fn send(&self, to: ControllerId, _service: &str, bytes: Vec<u8>, ttl: Duration) -> Result<(), Error> {
        if to != self.me {
            return Err(Error::new(Code::OwnerLeft, format!("controller {to} is not on this bus")));
        }
        match tokio::time::timeout(ttl, self.queue.send(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::new(Code::Unavailable, "the bus is stopping")),
            Err(_) => Err(Error::new(Code::Unavailable, "the bus has too much to do: try again in a moment")),
        }
    }

    async fn broadcast(&self, _bytes: Vec<u8>) -> Result<Told, Error> {
        Ok(Box::pin(std::future::ready(Ok(()))))
    }

    async fn forget(&self, _controller: ControllerId) {}

    fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    async fn close(&self) {}
}
