//! Messages of the volume service.

use shared::api::job::JobRef;
use shared::api::volume::{AttachVolume as AttachBody, CreateVolume as Body, Volume};
use shared::id::VolumeId;

use super::{changes, creates, reads};

reads!("volume", "volume.GetVolume" => GetVolume(VolumeId), "volume.ListVolumes" => ListVolumes, Volume, Read);
creates!("volume.CreateVolume" to "volume" => Volume, CreateVolume(VolumeId, Body), Create);
changes!(
    /// Attaches a data volume to a VM, hot when the VM runs.
    "volume.AttachVolume" to "volume" => JobRef, AttachVolume(VolumeId, body: AttachBody), Write
);
changes!(
    /// Detaches a data volume from its VM, hot when the VM runs.
    "volume.DetachVolume" to "volume" => JobRef, DetachVolume(VolumeId), Write
);
changes!(
    /// Removes a data volume that is attached to nothing.
    "volume.DeleteVolume" to "volume" => JobRef, DeleteVolume(VolumeId), Write
);
