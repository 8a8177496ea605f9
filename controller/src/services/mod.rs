//! The services, each a module of its own; they talk only through the bus.
//!
//! A service is a folder: `mod.rs` says what it owns and registers its handlers and flows,
//! `service.rs` holds the short handlers, and each verb that is a job has a file with its flow. What
//! several services need lies below them: the database, the workflow engine, the agents.

pub mod zone;

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::time::Timestamp;
use shared::{Code, Error, Result};

use crate::bus::{Bus, Registry};
use crate::cx::Cx;
use crate::db::{self, Tx};
use crate::deps::Deps;
use crate::workflow::{Engine, Flows};

/// What a service has at hand. Cloning shares it.
#[derive(Clone)]
pub struct Context {
    /// Database, agents, ring, clock, settings.
    pub deps: Arc<Deps>,
    /// Accepts jobs.
    pub engine: Arc<Engine>,
    bus: Arc<OnceLock<Arc<Bus>>>,
}

/// A service, as the controller starts it.
pub struct Definition {
    /// Its name, as in the configuration and in `/v1/services`.
    pub name: &'static str,
    /// Adds its flows.
    pub flows: fn(&mut Flows),
    /// Adds its handlers and subscribers.
    pub register: fn(&Context, &mut Registry),
}

/// Every service.
pub const ALL: &[Definition] = &[Definition { name: "zone", flows: |_| (), register: zone::register }];

impl Context {
    /// A context whose bus is set when it has started.
    #[must_use]
    pub fn new(deps: Arc<Deps>, engine: Arc<Engine>) -> Self {
        Self { deps, engine, bus: Arc::default() }
    }

    /// Hands over the bus, once, before anything is accepted.
    pub fn set_bus(&self, bus: Arc<Bus>) {
        // A second bus would be a defect of the start-up; the first one stays.
        let _ = self.bus.set(bus);
    }

    /// The bus.
    pub fn bus(&self) -> Result<&Arc<Bus>> {
        self.bus.get().ok_or_else(|| Error::new(Code::Unavailable, "the controller is starting"))
    }

    /// Carries out a mutation that is done at once, in one transaction. A repetition under the same
    /// idempotency key answers what the first one answered; a dry run is rolled back.
    pub async fn mutate<R, F>(&self, cx: &Cx, work: F) -> Result<R>
    where
        R: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: for<'t> FnOnce(&'t mut Tx, Timestamp) -> BoxFuture<'t, db::Result<R>> + Send + 'static,
    {
        let now = self.deps.clock.now();
        let key = cx.idempotency.clone().zip(cx.caller.account());
        let dry_run = cx.dry_run;
        let (answer, mut planned) = tokio::sync::oneshot::channel();
        let written = self.deps.db.write(move |tx| {
            Box::pin(async move {
                if let Some((key, account)) = &key
                    && let Some(reply) = db::idempotency::find::<R>(tx, *account, key).await?
                {
                    return Ok(reply);
                }
                let reply = work(tx, now).await?;
                if dry_run {
                    // Refusing rolls back; the caller takes the reply from beside.
                    let _ = answer.send(reply);
                    return Err(Error::new(Code::Cancelled, "a dry run changes nothing").into());
                }
                if let Some((key, account)) = &key {
                    db::idempotency::record(tx, *account, key, &reply, now).await?;
                }
                Ok(reply)
            })
        });
        match written.await {
            Err(_) if dry_run && let Ok(reply) = planned.try_recv() => Ok(reply),
            result => Ok(result?),
        }
    }
}

/// Refuses a text that is too long.
pub fn check_text(field: &str, text: &str, max_chars: usize) -> Result<()> {
    match text.chars().count() {
        n if n > max_chars => Err(Error::invalid(field, format!("has {n} characters: give at most {max_chars}"))),
        _ if text.contains('\0') => Err(Error::invalid(field, "must not contain NUL characters")),
        _ => Ok(()),
    }
}

/// What to answer when a client sends a create again with an id that exists: the existing resource
/// when it is the same, otherwise a conflict that names the fields that differ.
pub fn same_or_conflict<T: Serialize>(noun: &str, existing: &T, wanted: &T) -> Result<()> {
    let (existing, wanted) = (serde_json::to_value(existing), serde_json::to_value(wanted));
    let (Ok(serde_json::Value::Object(existing)), Ok(serde_json::Value::Object(wanted))) = (existing, wanted) else {
        return Err(Error::internal(format_args!("two {noun}s could not be compared")));
    };
    let mut differing: Vec<_> =
        wanted.iter().filter(|(k, v)| existing.get(*k) != Some(*v)).map(|(k, _)| k.as_str()).collect();
    differing.extend(existing.keys().filter(|k| !wanted.contains_key(*k)).map(String::as_str));
    if differing.is_empty() {
        return Ok(());
    }
    differing.sort_unstable();
    let text = format!("a {noun} with this id exists with another {}: choose another id", differing.join(", "));
    Err(Error::new(Code::Conflict, text))
}
