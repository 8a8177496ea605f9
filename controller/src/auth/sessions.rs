//! TLS sessions with hosts: one ticket for each, a bounded number of hosts.
//!
//! A ticket is good once, and a connection hands out the next one, so a second ticket for the same
//! host would only take memory: at a hundred thousand hosts that counts. A resumed session shows no
//! certificate, and each hands out the next ticket, so without an end a host that is pinged would never
//! have to show again that its certificate is still good: after [`FULL_EVERY`] it has to.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;
use tokio::time::Instant;

/// How long after a whole handshake sessions are resumed.
pub(super) const FULL_EVERY: Duration = Duration::from_secs(3600);

/// What is known of a host: the next ticket, and when its certificate was last looked at.
#[derive(Debug)]
struct Known {
    since: Instant,
    ticket: Option<Tls13ClientSessionValue>,
}

/// The tickets.
#[derive(Debug)]
pub(super) struct Sessions {
    max: usize,
    tickets: Mutex<HashMap<ServerName<'static>, Known>>,
}

impl Sessions {
    pub(super) fn new(max: usize) -> Self {
        Self { max, tickets: Mutex::default() }
    }
}

impl ClientSessionStore for Sessions {
    // All agents are ours and take the first group that is offered.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    // Agents speak TLS 1.3.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, host: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() >= self.max && !tickets.contains_key(&host) {
            // Any one makes room: which host is next cannot be known, and losing one costs a handshake.
            let Some(evicted) = tickets.keys().next().cloned() else { return };
            tickets.remove(&evicted);
        }
        // The first ticket of a host comes of a whole handshake.
        let known = tickets.entry(host).or_insert_with(|| Known { since: Instant::now(), ticket: None });
        known.ticket = Some(ticket);
    }

    fn take_tls13_ticket(&self, host: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tickets.get_mut(host)?;
        // Without a ticket the handshake is a whole one, from which time counts anew.
        match known.ticket.take().filter(|_| known.since.elapsed() < FULL_EVERY) {
            Some(ticket) => Some(ticket),
            None => {
                tickets.remove(host);
                None
            }
        }
    }
}
