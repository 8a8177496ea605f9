//! How encoded messages get from one controller to another.
//!
//! The in-process transport hands them back to the controller that sent them. With the loopback set
//! to `wire`, every message takes this way even when its owner is here, so tests see each one written
//! and read as it would be between two controllers.

use async_trait::async_trait;
use shared::id::ControllerId;
use shared::{Code, Error};
use tokio::sync::mpsc;

/// Carries encoded envelopes. Delivery is at most once; a reply that does not come is the sender's
/// deadline's business.
#[async_trait]
pub trait Transport: Send + Sync {
    /// To one controller. An error at once when it is known to be gone.
    async fn send(&self, to: ControllerId, service: &str, bytes: Vec<u8>) -> Result<(), Error>;
    /// To every other controller.
    async fn broadcast(&self, bytes: Vec<u8>) -> Result<(), Error>;
}

/// The transport of a controller that is alone.
pub struct LocalTransport {
    me: ControllerId,
    queue: mpsc::Sender<Vec<u8>>,
}

impl LocalTransport {
    /// A transport whose messages come out of the receiver; at most `bound` wait.
    #[must_use]
    pub fn new(me: ControllerId, bound: usize) -> (Self, mpsc::Receiver<Vec<u8>>) {
        let (queue, messages) = mpsc::channel(bound);
        (Self { me, queue }, messages)
    }
}

#[async_trait]
impl Transport for LocalTransport {
    async fn send(&self, to: ControllerId, _service: &str, bytes: Vec<u8>) -> Result<(), Error> {
        if to != self.me {
            return Err(Error::new(Code::OwnerLeft, format!("controller {to} is not on this bus")));
        }
        self.queue.send(bytes).await.map_err(|_| Error::new(Code::Unavailable, "the bus is stopping"))
    }

    async fn broadcast(&self, _bytes: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }
}
