//! Calls of other controllers: sent, waited for, and given up when the other one has gone or nobody waits any more.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use shared::id::ControllerId;
use shared::{Code, Error};
use tokio::sync::oneshot;

use super::envelope::Envelope;
use super::{Bus, CANCEL, Request, too_late};
use crate::cx::Cx;

/// A call whose answer has not come.
pub(super) struct Waiting {
    owner: ControllerId,
    pub(super) reply: oneshot::Sender<Result<Box<RawValue>, Error>>,
}

impl Bus {
    /// Fails every request that waits for `controller`, which left the ring, and has the transport keep
    /// nothing for it any more.
    pub fn controller_left(&self, controller: ControllerId) {
        let transport = Arc::clone(&self.transport);
        self.tasks.spawn(async move { transport.forget(controller).await });
        self.controller_restarted(controller);
    }

    /// Fails every request that waits for a former life of `controller`: nobody has it in hand any more.
    pub fn controller_restarted(&self, controller: ControllerId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, lost) in waiting.extract_if(|_, w| w.owner == controller) {
            // Nobody waits any more when this fails.
            let _ = lost.reply.send(Err(left(controller)));
        }
    }

    pub(super) async fn call_wire<M: Request>(
        self: &Arc<Self>,
        target: ControllerId,
        cx: &Cx,
        message: &M,
    ) -> Result<M::Reply, Error> {
        let mut envelope = Envelope::wrap(cx, M::SERVICE, message, self.ring.generation(), self.clock.now().ms())?;
        envelope.headers.reply_to = Some(self.ring.me());
        let bytes = envelope.encode()?;
        let (reply, answer) = oneshot::channel();
        let (id, ttl) = (envelope.id, Duration::from_millis(envelope.timeout_ms));
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Waiting { owner: target, reply });
        let mut abandoned = Abandoned { bus: self, target, request: Some(envelope) };
        // Looked at after others can see that this waits: who goes from now on has it told.
        let result = if self.ring.is_alive(target) {
            let sent = self.transport.send(target, M::SERVICE, bytes, ttl);
            tokio::time::timeout_at(cx.deadline, answered(sent, answer))
                .await
                .unwrap_or_else(|_| Err(too_late(M::NAME)))
        } else {
            Err(left(target))
        };
        abandoned.request = None;
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        serde_json::from_str(result?.get())
            .map_err(|e| Error::internal(format_args!("the reply to {} could not be read: {e}", M::NAME)))
    }
}

/// Tells the other side when a caller stops waiting.
struct Abandoned<'a> {
    bus: &'a Arc<Bus>,
    target: ControllerId,
    request: Option<Envelope>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.bus.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.id);
            self.bus.send_about(&request, CANCEL, self.target, &());
        }
    }
}

/// What is answered to a message, which may be that its receiver has left while it still waits for the broker.
async fn answered<T>(
    sent: impl Future<Output = Result<(), Error>>,
    mut answer: oneshot::Receiver<Result<T, Error>>,
) -> Result<T, Error> {
    let stopping = |_| Err(Error::new(Code::Unavailable, "the bus is stopping"));
    tokio::select! {
        biased;
        early = &mut answer => return early.unwrap_or_else(stopping),
        sent = sent => if let Err(error) = sent {
            return answer.try_recv().unwrap_or(Err(error));
        },
    }
    answer.await.unwrap_or_else(stopping)
}

fn left(controller: ControllerId) -> Error {
    Error::new(Code::OwnerLeft, format!("controller {controller} left before it answered"))
}
