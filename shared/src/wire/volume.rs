//! Volumes on a host's storage.

use serde::{Deserialize, Serialize};

use crate::api::image::DiskFormat;
use crate::id::{ResourceId, VolumeId};
use crate::units::Bytes;
use crate::wire::Empty;
use crate::wire::host::StorageSpec;
use crate::wire::image::ImageSpec;

/// A volume that must exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// The volume; its file is named after it.
    pub volume_id: VolumeId,
    /// The storage that keeps it.
    pub storage: StorageSpec,
    /// Format on the storage.
    pub format: DiskFormat,
    /// Size that the guest sees.
    pub size: Bytes,
    /// The image that it is based on; an empty disk when absent.
    #[serde(default)]
    pub base: Option<ImageSpec>,
}

/// Makes a volume; a success when it exists with the same size and base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// The volume.
    pub volume: VolumeSpec,
}

/// Removes a volume; a success when it is not there. Refused with `in_use` while a running domain has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteVolume {
    /// The volume.
    pub volume_id: VolumeId,
    /// The storage that keeps it.
    pub storage: StorageSpec,
}

super::agent_commands! {
    CreateVolume = "volume/create" => Empty, |c| c.volume.volume_id.uuid();
    DeleteVolume = "volume/delete" => Empty, |c| c.volume_id.uuid();
}
