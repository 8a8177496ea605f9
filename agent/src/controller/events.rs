//! Events on their way to the controllers: a bounded queue, sent in batches and in order.
//!
//! Pushing never waits. What overflows or cannot be delivered for long is dropped with a warning:
//! the digest in the next ping then differs, and the controller asks for everything.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::wire::event::{AgentEvent, AgentEvents};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Backoff, Client};

/// Most events that wait; about a minute of a host on which everything changes.
const MAX_WAITING: usize = 4096;
/// Most events in one request.
const MAX_BATCH: usize = 256;
/// How long one batch is tried.
const GIVE_UP: Duration = Duration::from_secs(600);

/// The queue; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Events(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    pushed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<AgentEvent>,
    dropped: u64,
}

impl Events {
    /// Puts an event into the queue, from any thread, without waiting.
    pub fn push(&self, event: AgentEvent) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.events.len() >= MAX_WAITING {
            waiting.events.pop_front();
            waiting.dropped += 1;
        }
        waiting.events.push_back(event);
        drop(waiting);
        self.0.pushed.notify_one();
    }

    /// Takes the next events out, waiting for the first one; `dropped` tells how many were lost before.
    async fn take(&self) -> (Vec<AgentEvent>, u64) {
        loop {
            {
                let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if !waiting.events.is_empty() {
                    let n = waiting.events.len().min(MAX_BATCH);
                    let batch = waiting.events.drain(..n).collect();
                    return (batch, std::mem::take(&mut waiting.dropped));
                }
            }
            self.0.pushed.notified().await;
        }
    }

    /// Sends events until the agent stops.
    pub async fn run(self, client: Client, stop: CancellationToken) {
        while let Some((events, dropped)) = stop.run_until_cancelled(self.take()).await {
            if dropped > 0 {
                tracing::warn!(dropped, "events were dropped: no controller takes them");
            }
            let batch = AgentEvents { host_id: client.host_id(), events };
            if stop.run_until_cancelled(send(&client, &batch)).await.is_none() {
                return;
            }
        }
    }
}

async fn send(client: &Client, batch: &AgentEvents) {
    let give_up = Instant::now() + GIVE_UP;
    let mut backoff = Backoff::default();
    loop {
        let error = match client.post::<serde::de::IgnoredAny>("/agent/v1/events", batch).await {
            Ok(_) => return,
            Err(error) => error,
        };
        if !error.is_passing() || Instant::now() >= give_up {
            tracing::warn!(error = crate::log::chain(&error), events = batch.events.len(), "events are given up");
            return;
        }
        tracing::debug!(error = crate::log::chain(&error), "events are sent again");
        tokio::time::sleep(backoff.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::id::VmId;

    #[tokio::test]
    async fn events_keep_their_order_and_the_oldest_are_dropped() {
        let events = Events::default();
        let ids: Vec<_> = (0..MAX_WAITING + 3).map(|_| VmId::new()).collect();
        ids.iter().for_each(|vm_id| events.push(AgentEvent::VmGone { vm_id: *vm_id }));
        let (batch, dropped) = events.take().await;
        assert_eq!((batch.len(), dropped), (MAX_BATCH, 3));
        assert_eq!(batch[0], AgentEvent::VmGone { vm_id: ids[3] });
        assert_eq!(events.take().await.1, 0);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_a_push() {
        let events = Events::default();
        let (taken, ()) = tokio::join!(events.take(), async { events.push(AgentEvent::AgentStarted) });
        assert_eq!(taken.0, [AgentEvent::AgentStarted]);
    }
}
