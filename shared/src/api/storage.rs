//! Storages: places where volumes are kept.

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::id::{ClusterId, HostId, StorageId};
use crate::name::Name;
use crate::time::Timestamp;
use crate::units::Bytes;

/// Kinds of storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StorageKind {
    /// A folder on each host's own disk.
    #[default]
    Local,
    /// A file system that several hosts have mounted at the same path.
    Shared,
}

/// What one host has of a storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StorageHost {
    /// The host.
    pub host_id: HostId,
    /// Bytes of the file system.
    pub total: Bytes,
    /// Bytes free on it, as last reported.
    pub available: Bytes,
    /// Bytes promised to volumes there; of a shared storage they are counted once, in its `capacity`.
    pub reserved: Bytes,
    /// Why the host cannot use it now; absent when it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a shared storage has, once for all hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StorageCapacity {
    /// Bytes of the file system.
    pub total: Bytes,
    /// Bytes free on it, as last reported.
    pub available: Bytes,
    /// Bytes promised to volumes.
    pub reserved: Bytes,
}

/// A storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Storage {
    /// Its id.
    pub id: StorageId,
    /// Its name, unique.
    pub name: Name,
    /// Its kind.
    pub kind: StorageKind,
    /// The cluster whose hosts have it.
    pub cluster_id: ClusterId,
    /// Absolute path of the folder on the hosts.
    pub path: String,
    /// What each host has of it.
    pub hosts: Vec<StorageHost>,
    /// For a shared storage: what it has, once for all hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<StorageCapacity>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `POST /v1/storages`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateStorage {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<StorageId>,
    /// Unique name.
    pub name: Name,
    /// Its kind.
    pub kind: StorageKind,
    /// The cluster whose hosts have it.
    pub cluster_id: ClusterId,
    /// Absolute path on the hosts: of the folder, or of the mount point of a shared storage.
    pub path: String,
}
