//! Instance types: named sizes of VM.

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::id::InstanceTypeId;
use crate::name::Name;
use crate::time::Timestamp;
use crate::units::Bytes;

/// An instance type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InstanceType {
    /// Its id.
    pub id: InstanceTypeId,
    /// Its name, unique.
    pub name: Name,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory: Bytes,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `POST /v1/instance_types`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstanceType {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<InstanceTypeId>,
    /// Unique name.
    pub name: Name,
    /// Virtual processors, 1 to 512.
    pub vcpus: u32,
    /// Guest memory in bytes, at least 16 MiB.
    pub memory: Bytes,
}
