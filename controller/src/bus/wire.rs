//! What comes from a wire: requests for the services here, replies to those who wait, events, and word
//! that nobody waits any more.

use std::sync::{Arc, PoisonError};

use shared::{Code, Error};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::envelope::Envelope;
use super::{Bus, CANCEL, REPLY, WireReply};

/// Messages that are taken from the inbox together at most.
const BATCH: usize = 64;

impl Bus {
    /// Reads what the transport receives, until `stop`.
    pub(super) async fn receive(self: Arc<Self>, mut inbox: mpsc::Receiver<Vec<u8>>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        while stop.run_until_cancelled(inbox.recv_many(&mut batch, BATCH)).await.is_some_and(|count| count > 0) {
            for bytes in batch.drain(..) {
                match Envelope::decode(&bytes) {
                    Ok(envelope) => self.deliver(envelope),
                    Err(error) => tracing::error!(
                        size = bytes.len(),
                        error = error.chain(),
                        detail = error.detail,
                        "a message was dropped"
                    ),
                }
            }
        }
    }

    /// Handles what came from a wire: a reply, an event or a request.
    fn deliver(self: &Arc<Self>, envelope: Envelope) {
        if envelope.name == REPLY {
            self.deliver_reply(&envelope);
        } else if envelope.name == CANCEL {
            let in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(cancelled) = envelope.headers.correlation.and_then(|id| in_hand.get(&id)) {
                cancelled.cancel();
            }
        } else if envelope.service_id.is_empty() {
            for subscriber in self.registry.subscribers.get(envelope.name.as_str()).into_iter().flatten() {
                subscriber.deliver_wire(&envelope.body);
            }
        } else {
            let envelope = Arc::new(envelope);
            if let Err(error) = self.deliver_request(&envelope) {
                self.reply(&envelope, Err(error));
            }
        }
    }

    fn deliver_request(self: &Arc<Self>, envelope: &Arc<Envelope>) -> Result<(), Error> {
        let handler = self.wire_handler(&envelope.name)?;
        if handler.service() != envelope.service_id {
            return Err(Error::new(
                Code::UnknownMessage,
                format!("{} is not for {}", envelope.name, envelope.service_id),
            ));
        }
        let stats = Arc::clone(handler.stats());
        let cx = envelope.cx();
        let (cancelled, deadline) = (cx.cancelled.clone(), cx.deadline);
        let (resource, work) = handler.open(cx, &envelope.body)?;
        let (bus, envelope) = (Arc::clone(self), Arc::clone(envelope));
        let id = envelope.id;
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner).insert(id, cancelled);
        let enqueued = self.enqueue(resource, &stats, async move {
            let result = bus.as_owner(resource, deadline, work).await;
            bus.in_hand.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            bus.reply(&envelope, result);
        });
        if enqueued.is_err() {
            self.in_hand.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        enqueued
    }

    fn deliver_reply(&self, envelope: &Envelope) {
        let waiting = envelope
            .headers
            .correlation
            .and_then(|id| self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id));
        let Some(waiting) = waiting else {
            tracing::debug!(correlation = ?envelope.headers.correlation, "a reply came after its deadline");
            return;
        };
        let result = match serde_json::from_str(envelope.body.get()) {
            Ok(WireReply::Ok(body)) => Ok(body),
            Ok(WireReply::Error(error)) => Err(error),
            Err(error) => Err(Error::internal(format_args!("a reply could not be read: {error}"))),
        };
        // Nobody waits any more when this fails.
        let _ = waiting.reply.send(result);
    }
}
