//! The files of uploaded images, `<data_dir>/images/<id>`: the gateway writes them, here they are
//! checked and removed.

use std::io;
use std::path::{Path, PathBuf};

use shared::api::image::Image;
use shared::id::ImageId;
use shared::image_header::{HEAD_LEN, inspect};
use shared::units::Bytes;
use shared::wire::image::{ImageInfo, ImageSpec};
use shared::{Code, Error, Result};
use tokio::fs;
use tokio::io::AsyncReadExt;

use crate::messages::image::Uploaded;

/// Where the content of an uploaded image is.
pub(super) fn path(data_dir: &Path, id: ImageId) -> PathBuf {
    folder(data_dir).join(id.to_string())
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("images")
}

/// Makes the folder of uploads.
pub(super) async fn make_folder(data_dir: &Path) -> Result<()> {
    fs::create_dir_all(folder(data_dir)).await.map_err(|e| failed("the folder of uploads could not be made", &e))
}

/// Removes an image's file; a success when there is none.
pub(super) async fn remove(data_dir: &Path, id: ImageId) -> Result<()> {
    match fs::remove_file(path(data_dir, id)).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("the uploaded file could not be removed", &error))
        }
        _ => Ok(()),
    }
}

/// Decides whether an upload is what the image was declared to be, and what it is. `spec` says what the
/// content must be.
pub(super) async fn check(data_dir: &Path, image: &Image, spec: &ImageSpec, uploaded: &Uploaded) -> Result<ImageInfo> {
    let mut file = match fs::File::open(path(data_dir, image.id)).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(Code::InvalidState, "the uploaded file is not there any more: upload it again"));
        }
        Err(error) => return Err(failed("the uploaded file could not be opened", &error)),
    };
    let size = file.metadata().await.map_err(|e| failed("the uploaded file could not be looked at", &e))?.len();
    let mut head = Vec::with_capacity(HEAD_LEN);
    let mut beginning = (&mut file).take(HEAD_LEN as u64);
    beginning.read_to_end(&mut head).await.map_err(|e| failed("the uploaded file could not be read", &e))?;
    if Bytes(size) != uploaded.size {
        let text = format!("the file has {size} bytes and not {}, as was uploaded: upload it again", uploaded.size.0);
        return Err(Error::new(Code::ImageRejected, text));
    }
    if uploaded.size > spec.max_size {
        let text = format!("the file has {}, more than the {} that are allowed", uploaded.size, spec.max_size);
        return Err(Error::new(Code::TooLarge, text));
    }
    if spec.sha256.as_ref().is_some_and(|declared| *declared != uploaded.sha256) {
        let text = format!("the file has the SHA-256 {}, which is not the declared one", uploaded.sha256);
        return Err(Error::new(Code::ChecksumMismatch, text));
    }
    let header = inspect(&head, size)?;
    if spec.format.is_some_and(|declared| declared != header.format) {
        let text = format!("the file is {}, which is not the declared format", header.format.as_str());
        return Err(Error::new(Code::ImageRejected, text));
    }
    let virtual_size = Bytes(header.virtual_size);
    if virtual_size > spec.max_virtual_size {
        let text = format!("the image unfolds to {virtual_size}, more than the {} allowed", spec.max_virtual_size);
        return Err(Error::new(Code::ImageRejected, text));
    }
    Ok(ImageInfo { format: header.format, sha256: uploaded.sha256.clone(), size: uploaded.size, virtual_size })
}

fn failed(what: &str, error: &io::Error) -> Error {
    let code = if error.kind() == io::ErrorKind::StorageFull { Code::NoSpace } else { Code::Internal };
    Error::new(code, what).with_detail(error.to_string())
}
