//! Hosts: KVM machines that run an agent.

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::id::{ClusterId, HostId, JoinTokenId};
use crate::name::Name;
pub use crate::state::host::{HostAdminState, HostConnection};
use crate::time::Timestamp;
use crate::units::Bytes;
pub use crate::wire::host::HostFacts;

/// What a host has and what of it is promised to VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostCapacity {
    /// Virtual processors that may be reserved: physical ones times the overcommit ratio.
    pub vcpus_total: u32,
    /// Virtual processors that are reserved.
    pub vcpus_reserved: u32,
    /// Memory that may be reserved.
    pub memory_total: Bytes,
    /// Memory that is reserved.
    pub memory_reserved: Bytes,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name, unique.
    pub name: Name,
    /// The cluster it is in.
    pub cluster_id: ClusterId,
    /// Where its agent listens: `address:port`.
    pub address: String,
    /// What the operator wants of it.
    pub admin_state: HostAdminState,
    /// Whether it answers.
    pub connection: HostConnection,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_reason: Option<String>,
    /// What it has and what is promised.
    pub capacity: HostCapacity,
    /// What the agent found there.
    pub facts: HostFacts,
    /// When it last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<Timestamp>,
    /// When it joined.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `PATCH /v1/hosts/{id}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateHost {
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// New wish of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_state: Option<HostAdminState>,
}

/// `POST /v1/join_tokens`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJoinToken {
    /// The cluster that the host joins; default the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<ClusterId>,
    /// How long it works, 10 seconds to 7 days; default one hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
}

/// A one-time permission for a host to join. Shown once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinToken {
    /// Its id.
    pub id: JoinTokenId,
    /// Give it to `kring-agent join`. It also names the controller's certificate authority, so the
    /// agent can check whom it talks to before it has any certificate.
    pub token: String,
    /// The cluster that the host joins.
    pub cluster_id: ClusterId,
    /// When it stops working.
    pub expires_at: Timestamp,
}
