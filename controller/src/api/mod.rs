//! The gateway: HTTP outside, the bus inside. A handler parses, calls, converts; nothing more.
//!
//! - [`router`]: the API on one page.
//! - [`Api::call`]: the one place that authorises, and the only way to the bus from here.
//! - [`front`], [`authn`]: what every request goes through, in this order.
//! - [`error`]: the one place where a refusal becomes an answer.
//! - [`server`]: listeners, TLS, draining.
//!
//! It holds no state of resources and knows no service, only messages.

mod agent;
mod authn;
mod console;
mod context;
pub mod docs;
mod error;
mod extract;
mod figures;
mod forward;
mod front;
mod image_content;
mod linger;
pub mod openapi;
mod probe;
mod reply;
mod router;
mod server;

mod account;
mod cluster;
mod controller;
mod event;
mod host;
mod image;
mod instance_type;
mod job;
mod network;
mod service;
mod setting;
mod storage;
mod streams;
mod token;
mod vm;
mod volume;
mod zone;

#[cfg(test)]
mod tests;

pub use agent::CallbackSink;
pub use server::{Error as StartError, Server};

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use shared::Error;
use shared::id::ImageId;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::agent_client::Agents;
use crate::auth::tls::Pki;
use crate::auth::{self, Action};
use crate::bus::{ApiRequest, Bus};
use crate::clock::Clock;
use crate::config::Config;
use crate::cx::{Cx, Idempotency};
use crate::db::Db;
use crate::metrics::Metrics;

/// What the gateway is made of.
pub struct Parts {
    /// The way to the services.
    pub bus: Arc<Bus>,
    /// Asked only for the owner of a resource, and whether it answers.
    pub db: Db,
    /// The configuration.
    pub config: Config,
    /// The wall clock.
    pub clock: Clock,
    /// Certificates of the listener.
    pub pki: Arc<Pki>,
    /// The way to consoles on hosts.
    pub agents: Arc<Agents>,
    /// Who waits for reports of agents.
    pub callbacks: Arc<dyn CallbackSink>,
    /// Figures of this process.
    pub metrics: Metrics,
}

/// The gateway. Handlers share it.
pub struct Api {
    bus: Arc<Bus>,
    db: Db,
    config: Config,
    clock: Clock,
    metrics: Metrics,
    agents: Arc<Agents>,
    callbacks: Arc<dyn CallbackSink>,
    /// Owns connections and what outlives a request.
    tasks: TaskTracker,
    /// Cancelled when the gateway stops.
    stop: CancellationToken,
    gate: authn::Gate,
    tickets: console::Tickets,
    /// Requests that may still be taken up.
    in_flight: Semaphore,
    /// Requests that may still wait for a job: half of those in flight, so that waiting stops nobody.
    waits: Semaphore,
    /// Event streams and consoles that are open.
    streams: Arc<streams::Streams>,
    /// Image contents that may still be sent to hosts.
    downloads: Arc<Semaphore>,
    /// Images whose content is being sent.
    uploads: Mutex<HashSet<ImageId>>,
    /// Why this controller is not ready; empty when it is.
    not_ready: ArcSwap<Vec<String>>,
    openapi: bytes::Bytes,
}

impl Api {
    fn new(parts: Parts) -> Arc<Self> {
        let Parts { bus, db, config, clock, agents, callbacks, metrics, pki: _ } = parts;
        let api = &config.api;
        Arc::new(Self {
            gate: authn::Gate::new(api),
            tickets: console::Tickets::new(bus.me()),
            in_flight: Semaphore::new(api.max_in_flight),
            waits: Semaphore::new((api.max_in_flight / 2).max(1)),
            streams: streams::Streams::new(api.max_streams, api.max_streams_per_account),
            downloads: Arc::new(Semaphore::new(api.max_streams)),
            uploads: Mutex::default(),
            not_ready: ArcSwap::from_pointee(vec!["it is starting".to_string()]),
            openapi: openapi::json().into(),
            metrics,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            bus,
            db,
            config,
            clock,
            agents,
            callbacks,
        })
    }

    /// Says that this controller can be used.
    pub fn set_ready(&self) {
        self.not_ready.store(Arc::default());
    }

    /// Says why this controller should not be used now.
    pub fn set_not_ready(&self, reasons: Vec<String>) {
        self.not_ready.store(Arc::new(reasons));
    }

    /// Sends what a caller asked for to the service that does it, when the caller may ask for it.
    ///
    /// # Errors
    /// `service_disabled`; `not_found` or `forbidden` for what the caller may not; what the service answers.
    pub async fn call<M: ApiRequest>(&self, cx: &Cx, message: M) -> Result<M::Reply, Error> {
        // Before anything is looked up: what is switched off has nothing to show to anybody.
        self.bus.refuse_disabled(M::SERVICE)?;
        let subject = message.subject();
        let asks_owner = matches!(M::ACTION, Action::Read | Action::Write) && !cx.caller.is_admin();
        let owner = match subject {
            Some(resource) if asks_owner => self.db.owners.get(resource).await?,
            _ => None,
        };
        auth::authorise(&cx.caller, M::ACTION, subject, owner)?;
        let changes = !matches!(M::ACTION, Action::Read | Action::ReadInfrastructure);
        if changes && cx.idempotency.is_none() && message.resource().is_some() && self.bus.is_shared() {
            // The owner may die before its answer arrives, and the next one is asked the same again.
            let key = format!("request:{}", Uuid::now_v7());
            let once = Idempotency { request_hash: key.clone(), key };
            return self.bus.call(&Cx { idempotency: Some(Arc::new(once)), ..cx.clone() }, message).await;
        }
        self.bus.call(cx, message).await
    }
}
