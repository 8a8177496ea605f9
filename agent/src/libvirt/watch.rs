//! The one thread that keeps the connection to libvirt and the [`Cache`]: it connects, lists, reads
//! again what events name, and connects again when the connection is lost. It sleeps in a channel
//! when nothing happens.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;
use virt::connect::Connect;

use super::Error;
use super::cache::Cache;
use super::calls;
use super::event::{Message, Sink, Subscription};

/// Seconds between keepalive messages, and how many may stay unanswered: a frozen libvirtd is given
/// up after a quarter of a minute.
const KEEPALIVE: (i32, u32) = (5, 2);

/// What the thread shares with the callers.
#[derive(Debug)]
pub struct Shared {
    /// The driver.
    pub uri: String,
    /// The connection, or why there is none.
    pub connect: Mutex<Result<Connect, String>>,
    /// What libvirt last told.
    pub cache: Cache,
    /// Where this thread is told things.
    pub sink: Sink,
    /// Pause between attempts to connect.
    pub retry: Duration,
}

impl Shared {
    /// The connection.
    ///
    /// # Errors
    /// [`Error::Unreachable`] with the reason.
    pub fn connection(&self) -> Result<Connect, Error> {
        let slot = self.connect.lock().unwrap_or_else(PoisonError::into_inner);
        slot.clone().map_err(|reason| Error::Unreachable { reason })
    }

    fn set_connection(&self, connect: Result<Connect, String>) {
        let old = std::mem::replace(&mut *self.connect.lock().unwrap_or_else(PoisonError::into_inner), connect);
        // Closing a connection may block: not under the lock.
        drop(old);
    }
}

/// Why one connection came to its end.
enum End {
    Lost(String),
    Stop,
}

/// Runs until [`Message::Stop`] or until nobody can send any more.
pub fn run(shared: &Arc<Shared>, inbox: &Receiver<Message>) {
    let mut last_reason = String::new();
    loop {
        let reason = match serve(shared, inbox) {
            End::Stop => return,
            End::Lost(reason) => reason,
        };
        shared.set_connection(Err(reason.clone()));
        shared.cache.set_stale(&reason);
        shared.cache.bump();
        if reason != last_reason {
            tracing::warn!(libvirt.uri = shared.uri, reason, "libvirt cannot be used; trying again");
            last_reason = reason;
        }
        match inbox.recv_timeout(shared.retry) {
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn serve(shared: &Shared, inbox: &Receiver<Message>) -> End {
    let connect = match open(shared) {
        Ok(connect) => connect,
        Err(reason) => return End::Lost(reason),
    };
    // Events are asked for before the listing, so that no change falls between the two.
    let subscription = match Subscription::new(&connect, &shared.sink) {
        Ok(subscription) => subscription,
        Err(error) => return End::Lost(error.to_string()),
    };
    // Before the listing: whoever waits for that calls as soon as it is there.
    shared.set_connection(Ok(connect.clone()));
    if let Err(error) = refresh(shared, &connect) {
        return End::Lost(error.to_string());
    }
    tracing::info!(libvirt.uri = shared.uri, "connected to libvirt");
    let end = read_events(shared, &connect, inbox);
    drop(subscription);
    end
}

fn open(shared: &Shared) -> Result<Connect, String> {
    let connect = Connect::open(Some(&shared.uri)).map_err(|e| e.message().to_string())?;
    if let Err(error) = connect.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
        // Drivers without a daemon have nobody to keep alive.
        tracing::debug!(error = %error, "no keepalive on this connection");
    }
    Ok(connect)
}

fn refresh(shared: &Shared, connect: &Connect) -> Result<(), Error> {
    shared.cache.replace(calls::list(connect)?.vms);
    Ok(())
}

fn read_events(shared: &Shared, connect: &Connect, inbox: &Receiver<Message>) -> End {
    loop {
        let Ok(first) = inbox.recv() else { return End::Stop };
        let mut changed: HashSet<Uuid> = HashSet::new();
        let mut all = false;
        // A busy host sends many events about the same domain: one reading answers them all.
        for message in std::iter::once(first).chain(inbox.try_iter()) {
            match message {
                Message::Stop => return End::Stop,
                // One that was sent for an earlier connection must not end this one.
                Message::Closed if connect.is_alive().unwrap_or(false) => all = true,
                Message::Closed => return End::Lost("the connection to libvirt was closed".into()),
                Message::Probe => all = true,
                Message::Lifecycle(uuid) => {
                    changed.insert(uuid);
                }
                Message::Device(_) => shared.cache.bump(),
            }
        }
        if all || shared.sink.take_overflow() {
            if let Err(error) = refresh(shared, connect) {
                return End::Lost(error.to_string());
            }
            continue;
        }
        for uuid in changed {
            let vm_id = shared::id::VmId::from_uuid(uuid);
            match calls::report(connect, vm_id) {
                Ok(report) => shared.cache.put(vm_id, report),
                Err(error) => return End::Lost(error.to_string()),
            }
        }
    }
}
