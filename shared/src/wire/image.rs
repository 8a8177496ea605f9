//! Images in a host's cache.

use serde::{Deserialize, Serialize};

use crate::api::image::DiskFormat;
use crate::id::{ImageId, ResourceId};
use crate::units::Bytes;
use crate::wire::Empty;
use crate::wire::host::StorageSpec;

/// Where the content of an image is fetched from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageOrigin {
    /// Anywhere, over HTTP or HTTPS.
    Url {
        /// `http://` or `https://`.
        url: String,
    },
    /// `GET /agent/v1/images/{id}/content` of the controller.
    Controller,
}

/// An image that must be in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// The image.
    pub image_id: ImageId,
    /// Where it is fetched from when it is not in the cache.
    pub origin: ImageOrigin,
    /// Hexadecimal SHA-256 that the content must have; absent on the very first download.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Format that the header must show; absent on the very first download.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Largest file that is accepted.
    pub max_size: Bytes,
    /// Largest virtual size that is accepted.
    pub max_virtual_size: Bytes,
}

/// Brings an image into the cache: downloads it (resuming a partial download), checks its checksum
/// and its header. Nothing stays in the cache that failed a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnsureImage {
    /// The image.
    pub image: ImageSpec,
}

/// What an image turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Format in the header.
    pub format: DiskFormat,
    /// Hexadecimal SHA-256 of the file.
    pub sha256: String,
    /// Size of the file.
    pub size: Bytes,
    /// Size of the disk that a guest sees.
    pub virtual_size: Bytes,
}

/// Removes an image from the cache; a success when it is not there. Refused with `in_use` while a
/// volume on the host is based on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteImage {
    /// The image.
    pub image_id: ImageId,
    /// Shared storages that it is removed from as well, where they can be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storages: Vec<StorageSpec>,
}

super::agent_commands! {
    EnsureImage = "image/ensure" => ImageInfo, |c| c.image.image_id.uuid();
    DeleteImage = "image/delete" => Empty, |c| c.image_id.uuid();
}
