//! The services, each a module of its own; they talk only through the bus.
//!
//! A service is a folder: `mod.rs` says what it owns and registers its handlers and flows,
//! `service.rs` holds the short handlers, and each verb that is a job has a file with its flow. What
//! several services need lies below them: the database, the workflow engine, the agents.

pub mod account;
pub mod cluster;
pub mod controller;
pub mod event;
pub mod host;
pub mod image;
pub mod instance_type;
pub mod job;
pub mod network;
pub mod setting;
pub mod storage;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod vm;
pub mod volume;
pub mod zone;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::id::{AccountId, ResourceId};
use shared::time::Timestamp;
use shared::wire::AgentCommand;
use shared::{Code, Error, Result};
use tokio::time::Instant;

use crate::agent_client::HostRef;
use crate::bus::{Bus, Registry, Request};
use crate::config::ServicesConfig;
use crate::cx::Cx;
use crate::db::event::NewEvent;
use crate::db::{self, Tx};
use crate::deps::Deps;
use crate::workflow::{Engine, Flows, StepCx};

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
pub const ALL: &[Definition] = &[
    Definition { name: "account", flows: |_| (), register: account::register },
    Definition { name: "cluster", flows: |_| (), register: cluster::register },
    Definition { name: "controller", flows: |_| (), register: controller::register },
    Definition { name: "event", flows: |_| (), register: event::register },
    Definition { name: "host", flows: host::flows, register: host::register },
    Definition { name: "image", flows: image::flows, register: image::register },
    Definition { name: "instance_type", flows: |_| (), register: instance_type::register },
    Definition { name: "job", flows: |_| (), register: job::register },
    Definition { name: "network", flows: network::flows, register: network::register },
    Definition { name: "setting", flows: |_| (), register: setting::register },
    Definition { name: "storage", flows: |_| (), register: storage::register },
    Definition { name: "vm", flows: vm::flows, register: vm::register },
    Definition { name: "volume", flows: volume::flows, register: volume::register },
    Definition { name: "zone", flows: |_| (), register: zone::register },
];

/// Lets every service that `config` does not disable add its flows.
#[must_use]
pub fn flows(config: &ServicesConfig) -> Flows {
    let mut flows = Flows::default();
    ALL.iter().filter(|service| !config.is_disabled(service.name)).for_each(|service| (service.flows)(&mut flows));
    flows
}

/// Lets every service that `config` does not disable add its handlers, and notes the others.
pub fn register(config: &ServicesConfig, context: &Context, registry: &mut Registry) {
    for service in ALL {
        if config.is_disabled(service.name) {
            tracing::info!(service = service.name, "disabled by services.disabled");
            registry.disable(service.name);
        } else {
            (service.register)(context, registry);
        }
    }
}

impl Context {
    /// A context whose bus is set when it has started.
    #[must_use]
    pub fn new(deps: Arc<Deps>, engine: Arc<Engine>) -> Self {
        Self { deps, engine, bus: Arc::default() }
    }

    /// Lets `handle` answer every `M`.
    pub fn serve<M, F, Fut>(&self, registry: &mut Registry, handle: F)
    where
        M: Request,
        F: Fn(Self, Cx, M) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply>> + Send + 'static,
    {
        let context = self.clone();
        registry.serve(move |cx, message| handle(context.clone(), cx, message));
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

/// When an answer that waits for something must be given so that it is there before the deadline of
/// the call: the last tenth of the time, and at most a second, is kept for its way back.
#[must_use]
pub fn answer_by(cx: &Cx) -> Instant {
    let left = cx.deadline.saturating_duration_since(Instant::now());
    cx.deadline - (left / 10).min(Duration::from_secs(1))
}

/// The account that what the caller makes belongs to.
pub fn owner(cx: &Cx) -> Result<AccountId> {
    cx.caller.account().ok_or_else(|| Error::internal("Kring itself makes nothing that belongs to an account"))
}

/// What to answer when a client chose an id that another account has: nothing about what is there.
#[must_use]
pub fn id_taken(noun: &str) -> Error {
    Error::new(Code::Conflict, format!("this id cannot be used for a new {noun}: choose another id"))
}

/// Hosts that carry out one step's command at the same time.
const PARALLEL: usize = 32;

/// Has every one of `hosts` carry out `command`. A host that cannot be reached is left to the comparison
/// of inventories when it is back; any other failure fails the step, after all hosts were asked.
pub async fn on_hosts<C: AgentCommand>(cx: &StepCx, hosts: Vec<HostRef>, command: &C) -> Result<()> {
    let commands =
        (0_u32..).zip(hosts).map(|(n, host)| async move { (host.id, cx.command(host.id, n, command).await) });
    let mut outcomes = stream::iter(commands).buffer_unordered(PARALLEL);
    let mut failed = None;
    while let Some((host, outcome)) = outcomes.next().await {
        match outcome {
            Ok(_) => {}
            Err(error) if error.code == Code::HostUnreachable => {
                tracing::info!(host.id = %host, job.id = %cx.job_id, error = error.chain(), "left to the comparison of inventories");
            }
            Err(error) => failed = Some(error.during(format_args!("host {host} could not do it"))),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Turns a violated foreign key of an insert into `invalid_request` that names the field.
#[must_use]
pub fn unknown_reference(error: db::Error, field: &str, noun: &str) -> db::Error {
    if error.is_foreign_key_violation() {
        return Error::invalid(field, format!("there is no such {noun}: GET /v1/{noun}s lists them")).into();
    }
    error
}

/// Turns a violated foreign key of a removal into `in_use` that says what to do.
#[must_use]
pub fn still_used(error: db::Error, text: &str) -> db::Error {
    if error.is_foreign_key_violation() { Error::new(Code::InUse, text).into() } else { error }
}

/// Appends the event `/<noun>/<what>` about a resource, in the transaction that makes it true. Without
/// an account only admins see it.
pub fn announce<T: Serialize, I: ResourceId>(
    tx: &mut Tx,
    id: I,
    what: &str,
    account_id: Option<AccountId>,
    content: &T,
    at: Timestamp,
) -> db::Result<()> {
    let path = format!("/{}/{what}", I::NOUN);
    let event = NewEvent { path: &path, resource_kind: I::NOUN, resource_id: id.uuid(), account_id, content, at };
    db::event::append(tx, &event)
}
