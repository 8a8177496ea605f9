//! How encoded messages get from one controller to another, and how that way is.
//!
//! Two backends: [`LocalTransport`](super::LocalTransport) of a controller that is alone, and
//! [`RabbitTransport`](super::rabbit::RabbitTransport). With the loopback set to `broker`, every message
//! takes this way even when its owner is here, so tests see each one written and read as it would be
//! between two controllers.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use shared::Error;
use shared::id::ControllerId;
use shared::time::Timestamp;
use tokio::sync::watch;

/// Carries encoded envelopes. Delivery is at most once; a reply that does not come is the sender's
/// deadline's business.
#[async_trait]
pub trait Transport: Send + Sync {
    /// To one controller; worthless after `ttl`, and never waited for longer.
    ///
    /// # Errors
    /// `owner_left` at once when the controller is known to be gone; `unavailable` when the message
    /// could not be handed over within `ttl`, or when nobody knows whether it was.
    async fn send(&self, to: ControllerId, service: &str, bytes: Vec<u8>, ttl: Duration) -> Result<(), Error>;

    /// To every other controller: in the order in which it is handed over. What is answered resolves when it has
    /// been taken.
    ///
    /// # Errors
    /// `unavailable`, from either; then some of the others may have it.
    async fn broadcast(&self, bytes: Vec<u8>) -> Result<Told, Error>;

    /// A controller left the ring: what is kept for it goes.
    async fn forget(&self, controller: ControllerId);

    /// How it is, and every change of that. When `reconnects` has grown, broadcasts of others may have
    /// been missed: who lives by them asks again for what they tell.
    fn watch(&self) -> watch::Receiver<Health>;

    /// How it is.
    fn health(&self) -> Health {
        self.watch().borrow().clone()
    }

    /// Leaves in order: nothing is kept for this controller any more, nothing is sent or received.
    async fn close(&self);
}

/// Resolves when what was handed over has been taken, or is known not to be.
pub type Told = BoxFuture<'static, Result<(), Error>>;

/// How the way to the other controllers is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether there is a broker at all; without one, all else says that nothing is wrong.
    pub broker: bool,
    /// Messages can be sent and received.
    pub connected: bool,
    /// The broker takes no messages for now, most often for want of memory or disk.
    pub blocked: bool,
    /// When `connected` or `blocked` changed last.
    pub since: Timestamp,
    /// Why it is not connected, or why it is blocked; for the operator, without secrets.
    pub error: Option<String>,
    /// How often messages may have been missed: connections made again, queues made again.
    pub reconnects: u64,
}

impl Health {
    /// Without a broker: always well.
    #[must_use]
    pub fn local(now: Timestamp) -> Self {
        Self { broker: false, connected: true, blocked: false, since: now, error: None, reconnects: 0 }
    }

    /// In one word: `none`, `connected`, `blocked` or `away`.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match (self.broker, self.connected, self.blocked) {
            (false, _, _) => "none",
            (true, false, _) => "away",
            (true, true, true) => "blocked",
            (true, true, false) => "connected",
        }
    }
}
