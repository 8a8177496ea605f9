//! Events on their way to the other controllers: told in the order in which they were published here, so that those about
//! one resource, which its owner publishes, come in theirs.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use shared::{Code, Error};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Transport;

/// Events that may wait; what does not fit is read again by those who live by it.
const MOST: usize = 4096;
/// Events that are being told at a time, in their order.
const TOLD_TOGETHER: usize = 64;
/// How long those that were put before the end are waited for.
const LAST_EVENTS: Duration = Duration::from_secs(5);

struct Published {
    name: &'static str,
    bytes: Vec<u8>,
}

/// Where events are put.
pub(super) struct Outbox {
    events: mpsc::Sender<Published>,
    closing: CancellationToken,
    teller: TaskTracker,
}

impl Outbox {
    pub(super) fn start(transport: Arc<dyn Transport>) -> Self {
        let (events, published) = mpsc::channel(MOST);
        let (closing, teller) = (CancellationToken::new(), TaskTracker::new());
        teller.spawn(tell(transport, published, closing.clone()));
        Self { events, closing, teller }
    }

    /// Has an event told after those that were put before it, and does not wait: a failure is logged.
    pub(super) fn put(&self, name: &'static str, bytes: Vec<u8>) {
        let why = match self.events.try_send(Published { name, bytes }) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => "too many events wait to be told",
            Err(TrySendError::Closed(_)) => "the bus is stopping",
        };
        not_told(name, &Error::new(Code::Unavailable, why));
    }

    /// Takes no more events, and waits for a while until those that were put are told.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.teller.close();
        self.teller.wait().await;
    }
}

async fn tell(transport: Arc<dyn Transport>, events: mpsc::Receiver<Published>, closing: CancellationToken) {
    let too_late = async {
        closing.cancelled().await;
        tokio::time::sleep(LAST_EVENTS).await;
    };
    tokio::select! {
        () = tell_others(transport, events, &closing) => {}
        () = too_late => tracing::warn!("the last events were not told in time"),
    }
}

/// Tells what is put until `closing`, or until nobody can put anything any more.
async fn tell_others(
    transport: Arc<dyn Transport>,
    mut events: mpsc::Receiver<Published>,
    closing: &CancellationToken,
) {
    let mut told = FuturesUnordered::new();
    loop {
        tokio::select! {
            // What was put is still received.
            () = closing.cancelled(), if !events.is_closed() => events.close(),
            Some(()) = told.next() => {}
            event = events.recv(), if told.len() < TOLD_TOGETHER => {
                let Some(Published { name, bytes }) = event else { break };
                // Handed over one after the other, and confirmed when they are.
                match transport.broadcast(bytes).await {
                    Ok(confirmed) => told.push(async move {
                        if let Err(error) = confirmed.await {
                            not_told(name, &error);
                        }
                    }),
                    Err(error) => not_told(name, &error),
                }
            }
        }
    }
    while told.next().await.is_some() {}
}

pub(super) fn not_told(name: &str, error: &Error) {
    tracing::warn!(event.name = name, error = error.chain(), "an event did not reach the other controllers");
}
