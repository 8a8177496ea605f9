//! The protocol between controller and agent, one file per noun.
//!
//! Both directions are JSON over HTTPS with mutual TLS; a connection exists only while a request
//! needs it.
//!
//! Controller → agent:
//! - `POST /v1/commands/<noun>/<verb>` with the headers below. `200` carries the reply of a command
//!   that was quick; `202` says that the outcome will be posted to the callback as a [`TaskReport`].
//!   A repeated task id is not run twice: it is answered with the outcome, or `202` while it runs, and
//!   the outcome then goes to the callback of the repetition, which may be another controller's.
//! - `GET /v1/tasks/{id}`: the [`TaskReport`] of a task, for a callback that got lost; `404` when
//!   the agent does not know it (it restarted, say): then the command is sent again, for every
//!   command may be run twice.
//! - `412` to a command that was meant for the agent before its restart ([`HEADER_AGENT`]), with the id of the
//!   one that answers in the same header: it is sent again by a controller that may still act.
//! - `DELETE /v1/tasks/{id}`: cancels a task. `202`; `stale_generation` when its generation header is older
//!   than what has acted on the resource since, for the next owner wants the task to go on.
//! - `GET /v1/ping`, `GET /v1/inventory`, `GET /v1/facts`: see [`host`].
//! - `GET /v1/vms/{id}/console/{serial|vnc}` with `Connection: upgrade`, `Upgrade: kring-stream`:
//!   `101`, then the raw bytes of the console.
//!
//! Agent → agent, only while a guest is expected from that host: `GET /v1/migrations/{vm}/{libvirt|memory|disks}`
//! with the same upgrade: `101`, then the raw bytes of the migration.
//!
//! Agent → controller (below `/agent/v1`): `POST join`, `POST renew`, `POST callbacks/{task}`,
//! `POST events`, `GET images/{id}/content`.
//!
//! Commands and pings carry the addresses of all controllers (see [`controllers`]). A request that the
//! agent cannot post to one of them goes to the next; a report that arrives where nobody waits for it
//! is passed on to the others.
//!
//! Errors are a [`crate::Error`] in JSON with the status of its code.

pub mod controllers;
pub mod event;
pub mod host;
pub mod image;
pub mod network;
pub mod vm;
pub mod volume;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use controllers::HEADER_CONTROLLERS;

use crate::error::{Code, Error};
use crate::id::{HostId, TaskId};

/// Names the task; a UUID.
pub const HEADER_TASK: &str = "kring-task";
/// URL that the outcome of a `202` is posted to.
pub const HEADER_CALLBACK: &str = "kring-callback";
/// Ring generation under which the command was issued; a decimal number.
pub const HEADER_GENERATION: &str = "kring-generation";
/// Counts the commands that a controller gives about one resource, where they come one after the other; a
/// decimal number. Of one generation, an older one that arrives after a newer one is refused.
pub const HEADER_SEQUENCE: &str = "kring-sequence";
/// [`host::Pong::agent_id`] of the process of the agent that a command is meant for. An agent that was started
/// since has forgotten who commanded what it keeps no record of (a VM that was deleted, a volume, a network), so it
/// refuses what may have been on its way for long, and says in the same header of its answer who it is.
pub const HEADER_AGENT: &str = "kring-agent";
/// When the command is given up, in milliseconds since the epoch; a decimal number. For people who read it:
/// [`HEADER_TIME_LEFT`] counts when it is there.
pub const HEADER_DEADLINE: &str = "kring-deadline";
/// How long the command may take from now on, in milliseconds; a decimal number. The clocks of controller and
/// host may differ, and be set.
pub const HEADER_TIME_LEFT: &str = "kring-time-left";
/// Id of the request that caused this one, in every log line about it.
pub const HEADER_REQUEST_ID: &str = "x-request-id";
/// W3C trace context: whose work this is.
pub const HEADER_TRACEPARENT: &str = "traceparent";

/// Why an agent refuses a command that was meant for the one before it, with status `412`.
#[must_use]
pub fn other_agent() -> Error {
    Error::new(Code::Unavailable, "the agent was started again since this was sent to it: send it again")
}

/// What the `Upgrade` header says when a request becomes raw bytes.
pub const STREAM_PROTOCOL: &str = "kring-stream";

/// DNS name in a host's certificate; the controller connects to an address and expects this name.
#[must_use]
pub fn host_dns_name(id: HostId) -> String {
    format!("{id}{HOST_DNS_SUFFIX}")
}

/// The host whose name this is; `None` for another name.
#[must_use]
pub fn host_of_dns_name(name: &str) -> Option<HostId> {
    name.strip_suffix(HOST_DNS_SUFFIX)?.parse().ok()
}

const HOST_DNS_SUFFIX: &str = ".host.kring";

/// DNS name in every controller's certificate, for agents.
pub const CONTROLLER_DNS_NAME: &str = "controller.kring";

/// A command to an agent.
pub trait AgentCommand: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `<noun>/<verb>`, as in the path.
    const PATH: &'static str;
    /// What a success answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The resource that is commanded: commands about one resource are run one at a time, and one
    /// with an older generation than the resource has seen is refused.
    fn resource(&self) -> Uuid;
}

/// Declares commands: `Type = "noun/verb" => Reply, |command| resource uuid;`
macro_rules! agent_commands {
    ($($name:ty = $path:literal => $reply:ty, |$cmd:ident| $resource:expr;)*) => {$(
        impl $crate::wire::AgentCommand for $name {
            const PATH: &'static str = $path;
            type Reply = $reply;
            fn resource(&self) -> uuid::Uuid {
                let $cmd = self;
                $resource
            }
        }
    )*};
}
pub(crate) use agent_commands;

/// How far a task is, as posted to the callback and answered by `GET /v1/tasks/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TaskReport {
    /// It goes on.
    Running {
        /// The task.
        task_id: TaskId,
        /// Percent done, 0 to 100.
        progress: u8,
        /// What it does just now, in words.
        doing: String,
    },
    /// It succeeded.
    Done {
        /// The task.
        task_id: TaskId,
        /// The command's reply.
        reply: serde_json::Value,
    },
    /// It failed, and what it had begun is cleaned up or will be found by the reconcilers.
    Failed {
        /// The task.
        task_id: TaskId,
        /// Why.
        error: Error,
    },
}

impl TaskReport {
    /// The task that this report is about.
    #[must_use]
    pub const fn task_id(&self) -> TaskId {
        match self {
            Self::Running { task_id, .. } | Self::Done { task_id, .. } | Self::Failed { task_id, .. } => *task_id,
        }
    }
}

/// The reply of commands that have nothing to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}
