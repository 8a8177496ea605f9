//! Messages of the image service.

use serde::{Deserialize, Serialize};
use shared::api::image::{CreateImage as Body, Image};
use shared::api::job::JobRef;
use shared::id::ImageId;
use shared::units::Bytes;
use uuid::Uuid;

use super::{changes, creates, reads};

reads!("image", "image.GetImage" => GetImage(ImageId), "image.ListImages" => ListImages, Image, Read);
creates!("image.CreateImage" to "image" => JobRef, CreateImage(ImageId, Body), Create);
changes!(
    /// Removes an image that no VM's disk on a host is based on any more, from the hosts too.
    "image.DeleteImage" to "image" => JobRef, DeleteImage(ImageId), Write
);

/// What an upload brought, after the gateway has stored it durably in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// Which upload: no two have the same file, whoever sends them.
    pub upload: Uuid,
    /// Size of the file.
    pub size: Bytes,
    /// Hexadecimal SHA-256 of the file.
    pub sha256: String,
}

impl Uploaded {
    /// Name of the file in the folder of images, until the image takes it over.
    #[must_use]
    pub fn file_name(&self, image: ImageId) -> String {
        file_name(image, self.upload)
    }
}

/// Name of the file of an upload.
#[must_use]
pub fn file_name(image: ImageId, upload: Uuid) -> String {
    format!("{image}.{upload}")
}

changes!(
    /// The content of an image was uploaded: checks it and makes the image ready.
    "image.FinishUpload" to "image" => JobRef, FinishUpload(ImageId, body: Uploaded), Write
);
