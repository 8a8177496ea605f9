//! Messages of the host service, and the events that it publishes.

use serde::{Deserialize, Serialize};
use shared::api::host::{CreateJoinToken as TokenBody, Host, HostConnection, JoinToken, UpdateHost as UpdateBody};
use shared::api::job::JobRef;
use shared::id::{HostId, JoinTokenId, ResourceId};
use shared::wire::TaskReport;
use shared::wire::event::AgentEvent;
use shared::wire::host::{Join, Joined, Renew};

use super::{changes, creates, reads};
use crate::bus::{CanonicalEvent, Event, Message, request};

reads!("host", "host.GetHost" => GetHost(HostId), "host.ListHosts" => ListHosts, Host, ReadInfrastructure);
creates!("host.CreateJoinToken" to "host" => JoinToken, CreateJoinToken(JoinTokenId, TokenBody), Operate);
changes!(
    /// Renames a host or changes what the operator wants of it.
    "host.UpdateHost" to "host" => Host, UpdateHost(HostId, body: UpdateBody), Operate
);
changes!(
    /// Compares a host with the database again, now.
    "host.ReconnectHost" to "host" => Host, ReconnectHost(HostId), Operate
);
changes!(
    /// Forgets a host that has no VMs; its certificate is no longer accepted.
    "host.DeleteHost" to "host" => (), DeleteHost(HostId), Operate
);

changes!(
    /// Takes a host out for maintenance: its VMs are moved away, and it takes none.
    "host.MaintainHost" to "host" => JobRef, MaintainHost(HostId), Operate
);

/// A host wants to join. The id is that of its earlier life, or new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinHost {
    /// The host's id.
    pub id: HostId,
    /// Address that the request came from.
    pub from: String,
    /// What it sent.
    pub join: Join,
}
request!("host.JoinHost" to "host" => Joined, JoinHost, about |m| m.id.uuid());

/// A host wants a new certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewHost {
    /// The host, by its certificate.
    pub id: HostId,
    /// What it sent.
    pub renew: Renew,
}
request!("host.RenewHost" to "host" => Joined, RenewHost, about |m| m.id.uuid());

/// A host tells what happened there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEvents {
    /// The host, by its certificate.
    pub id: HostId,
    /// What happened, in order.
    pub events: Vec<AgentEvent>,
}
request!("host.HostEvents" to "host" => (), HostEvents, about |m| m.id.uuid());

/// A host's connection changed: `/host/connection/changed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostConnectionChanged {
    /// The host.
    pub host_id: HostId,
    /// Its connection now.
    pub connection: HostConnection,
}
impl Message for HostConnectionChanged {
    const NAME: &'static str = "host.HostConnectionChanged";
}
impl Event for HostConnectionChanged {}
impl CanonicalEvent for HostConnectionChanged {
    const PATH: &'static str = "/host/connection/changed";
}

/// A host has reported on a task that nobody waits for at the controller it told: whoever waits for
/// it elsewhere takes the report from here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReported {
    /// The host, by its certificate.
    pub host_id: HostId,
    /// What it told.
    pub report: TaskReport,
}
impl Message for TaskReported {
    const NAME: &'static str = "host.TaskReported";
}
impl Event for TaskReported {}

/// Compares a host with the database: it is new, has restarted, or tells of other VMs than it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompareHost {
    /// The host.
    pub id: HostId,
}
// Answers whether all agrees: what differs of a VM that a job holds is left to the job, and the host is to be compared
// again.
request!("host.CompareHost" to "host" => bool, CompareHost, about |m| m.id.uuid());

/// A host missed so many pings that it counts as disconnected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMissed {
    /// The host.
    pub id: HostId,
    /// Why, as the last ping told.
    pub reason: String,
}
request!("host.HostMissed" to "host" => (), HostMissed, about |m| m.id.uuid());
