//! The files of uploaded images, in `<data_dir>/images`.
//!
//! - `<image>.<upload>.part`: what the gateway is receiving; `<image>.<upload>`: an upload that is whole
//!   and waits for its check.
//! - `<image>`: the content of an image. It is a second name of the upload's file, given when the content
//!   was found good, so it is whole from its first moment.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use shared::api::image::Image;
use shared::id::ImageId;
use shared::image_header::{HEAD_LEN, inspect};
use shared::time::Timestamp;
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

/// Where an upload is until the image takes it over.
pub(super) fn upload_path(data_dir: &Path, id: ImageId, uploaded: &Uploaded) -> PathBuf {
    folder(data_dir).join(uploaded.file_name(id))
}

/// Makes the folder of uploads.
pub(super) async fn make_folder(data_dir: &Path) -> Result<()> {
    fs::create_dir_all(folder(data_dir)).await.map_err(|e| failed("the folder of uploads could not be made", &e))
}

/// Removes an image's file; a success when there is none.
pub(super) async fn remove(data_dir: &Path, id: ImageId) -> Result<()> {
    remove_file(&path(data_dir, id)).await
}

/// Removes the file of an upload; a success when there is none. An image that took it over keeps it.
pub(super) async fn remove_upload(data_dir: &Path, id: ImageId, uploaded: &Uploaded) -> Result<()> {
    remove_file(&upload_path(data_dir, id, uploaded)).await
}

pub(super) async fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("the uploaded file could not be removed", &error))
        }
        _ => Ok(()),
    }
}

/// Makes an upload the content of its image. May be done twice.
pub(super) async fn place(data_dir: &Path, id: ImageId, uploaded: &Uploaded) -> Result<()> {
    let (upload, content) = (upload_path(data_dir, id, uploaded), path(data_dir, id));
    if is_placed(&upload, &content).await? {
        return Ok(());
    }
    // What an upload left that was not undone completely; the image is not ready, so nobody reads it.
    remove_file(&content).await?;
    let failed = |error| failed("the uploaded file could not be put in its place", &error);
    fs::hard_link(&upload, &content).await.map_err(failed)?;
    let folder = fs::File::open(folder(data_dir)).await.map_err(failed)?;
    folder.sync_all().await.map_err(failed)
}

/// Takes back what [`place`] did with this upload; the content of another one stays.
pub(super) async fn unplace(data_dir: &Path, id: ImageId, uploaded: &Uploaded) -> Result<()> {
    let content = path(data_dir, id);
    if is_placed(&upload_path(data_dir, id, uploaded), &content).await? { remove_file(&content).await } else { Ok(()) }
}

/// Whether both are names of one file.
async fn is_placed(upload: &Path, content: &Path) -> Result<bool> {
    let (upload, content) = (identity(upload).await?, identity(content).await?);
    Ok(upload.is_some() && upload == content)
}

async fn identity(path: &Path) -> Result<Option<(u64, u64)>> {
    match fs::metadata(path).await {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("the uploaded file could not be looked at", &error)),
    }
}

/// Images of which files of uploads lie here that nobody has written to since `before`, with the files.
pub(super) async fn stale_uploads(data_dir: &Path, before: Timestamp) -> Result<Vec<(ImageId, PathBuf)>> {
    let failed = |error| failed("the folder of uploads could not be read", &error);
    let mut found = Vec::new();
    let mut entries = match fs::read_dir(folder(data_dir)).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(failed(error)),
    };
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        let name = entry.file_name();
        // The content of an image has no dot in its name.
        let Some((image, _)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        let Ok(image) = image.parse::<ImageId>() else { continue };
        let Ok(meta) = entry.metadata().await else { continue };
        if meta.mtime().saturating_mul(1000) < before.ms() {
            found.push((image, entry.path()));
        }
    }
    Ok(found)
}

/// Decides whether an upload is what the image was declared to be, and what it is. `spec` says what the
/// content must be.
pub(super) async fn check(data_dir: &Path, image: &Image, spec: &ImageSpec, uploaded: &Uploaded) -> Result<ImageInfo> {
    let mut file = match fs::File::open(upload_path(data_dir, image.id, uploaded)).await {
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
