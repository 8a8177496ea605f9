//! Clusters: hosts that share networks and storage, and their overcommit ratios.

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::id::{ClusterId, ZoneId};
use crate::name::Name;
use crate::time::Timestamp;

/// A cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its name, unique.
    pub name: Name,
    /// The zone it is in.
    pub zone_id: ZoneId,
    /// Free text.
    pub description: String,
    /// Virtual processors that may be reserved per physical one.
    pub cpu_overcommit: f64,
    /// Guest memory that may be reserved per byte of host memory (after the host's own reserve).
    pub memory_overcommit: f64,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `POST /v1/clusters`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCluster {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ClusterId>,
    /// Unique name.
    pub name: Name,
    /// The zone it is in.
    pub zone_id: ZoneId,
    /// Free text, at most 1,000 characters.
    #[serde(default)]
    pub description: String,
    /// 0.1 to 100; default from the setting `placement.cpu_overcommit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_overcommit: Option<f64>,
    /// 0.1 to 10; default from the setting `placement.memory_overcommit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_overcommit: Option<f64>,
}
