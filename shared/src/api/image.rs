//! Images: what VMs are made from.

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::id::{AccountId, ImageId};
use crate::name::Name;
pub use crate::state::image::ImageState;
use crate::time::Timestamp;
use crate::units::Bytes;

/// Formats that are accepted; decided once from the header and given explicitly ever after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// The bytes of the disk.
    Raw,
}

impl DiskFormat {
    /// The word that `qemu-img -f`, libvirt and the database use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// How a machine finds its boot code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

/// Where an image's content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    /// Downloaded by the hosts over HTTP or HTTPS.
    Url {
        /// `http://` or `https://`.
        url: String,
    },
    /// Sent to the controller with `PUT /v1/images/{id}/content`.
    Upload,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name, unique in the account.
    pub name: Name,
    /// Its owner.
    pub account_id: AccountId,
    /// Whether it can be used.
    pub state: ImageState,
    /// Where its content comes from.
    pub source: ImageSource,
    /// Found in the header when it was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Hexadecimal SHA-256 of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Size of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// Size of the disk that the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<Bytes>,
    /// Firmware that VMs from it boot with.
    pub firmware: Firmware,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `POST /v1/images`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ImageId>,
    /// Name, unique in the account.
    pub name: Name,
    /// Where the content comes from.
    pub source: ImageSource,
    /// Hexadecimal SHA-256 that the content must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Format that the content must have; found in the header when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Firmware that VMs from it boot with.
    #[serde(default)]
    pub firmware: Firmware,
}
