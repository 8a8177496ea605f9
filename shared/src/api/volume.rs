//! Volumes: virtual disks.

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::api::image::DiskFormat;
use crate::id::{AccountId, HostId, ImageId, StorageId, VmId, VolumeId};
use crate::name::Name;
pub use crate::state::volume::VolumeState;
use crate::time::Timestamp;
use crate::units::Bytes;

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// The disk that a VM boots from; lives and dies with it.
    Root,
    /// A disk of its own life.
    Data,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name, unique in the account.
    pub name: Name,
    /// Its owner.
    pub account_id: AccountId,
    /// What it is for.
    pub kind: VolumeKind,
    /// What it is doing.
    pub state: VolumeState,
    /// Size that the guest sees.
    pub size: Bytes,
    /// Format on the storage.
    pub format: DiskFormat,
    /// The storage that keeps it.
    pub storage_id: StorageId,
    /// The host whose disk it is on; none until it is first placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    /// The VM that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<VmId>,
    /// Device name in that VM, such as `vdb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The image that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<ImageId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `POST /v1/volumes`: an empty data volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VolumeId>,
    /// Name, unique in the account.
    pub name: Name,
    /// Size in bytes, a multiple of 512, at least 1 MiB.
    pub size: Bytes,
    /// Format; default qcow2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// The storage; default the first of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_id: Option<StorageId>,
}

/// `POST /v1/volumes/{id}/attach`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachVolume {
    /// The VM that gets it, running or stopped.
    pub vm_id: VmId,
}
