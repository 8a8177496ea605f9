//! The image cache: `<image-id>.<qcow2|raw>` with `<image-id>.json` beside it, which says what was
//! found and is written last. Volumes are based on these files, so they never change.
//!
//! `<image-id>.users/<volume-id>` links to each volume that is based on the image: what a deletion
//! looks at. One download per image runs at a time, others wait for it. Which servers may be asked is
//! decided in [`guard`].

mod download;
mod guard;
mod on_shared;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use shared::api::image::DiskFormat;
use shared::api::storage::StorageKind;
use shared::id::{ImageId, VolumeId};
use shared::wire::host::StorageSpec;
use shared::wire::image::{ImageInfo, ImageSpec};
use shared::{Code, Error, Result};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, Semaphore};

use super::FileError;
use super::shared::Claim;
use crate::app::App;
use crate::config::{Config, ImageConfig};
use crate::identity::replace_file;
use crate::task::TaskCx;

/// How long a download that broke off is kept to be resumed.
const KEEP_PARTS: Duration = Duration::from_secs(7 * 24 * 3600);

/// The cache.
pub struct Images {
    dir: PathBuf,
    config: ImageConfig,
    http: reqwest::Client,
    locks: Mutex<HashMap<ImageId, Weak<RwLock<()>>>>,
    downloads: Semaphore,
}

/// An image that is in the cache, and stays there as long as this is held.
#[derive(Debug)]
pub struct Held {
    /// What it is.
    pub info: ImageInfo,
    /// Its file.
    pub path: PathBuf,
    _lock: OwnedRwLockReadGuard<()>,
}

impl Images {
    /// The cache as it is configured; its folder is made when it is missing, and downloads that
    /// nobody came back for are removed.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(config: &Config) -> Result<Self> {
        let dir = config.image_dir();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .map_err(|e| FileError::new("could not make", &dir, e))?;
        let http = download::client(&config.image)?;
        let downloads = Semaphore::new(config.image.max_parallel.max(1));
        let images = Self { dir, config: config.image.clone(), http, locks: Mutex::default(), downloads };
        images.remove_old_parts()?;
        Ok(images)
    }

    /// The file of an image.
    #[must_use]
    pub fn path(&self, id: ImageId, format: DiskFormat) -> PathBuf {
        self.file(id, format.as_str())
    }

    /// Brings an image into the cache, or finds it there, and holds it.
    ///
    /// # Errors
    /// `download_failed`, `checksum_mismatch`, `image_rejected`, `no_space`, and those of the task.
    pub async fn ensure(&self, app: &App, cx: &TaskCx, spec: &ImageSpec) -> Result<Held> {
        let lock = self.lock(spec.image_id);
        let shared = cx.until_cancelled(async { Ok::<_, Error>(Arc::clone(&lock).read_owned().await) }).await?;
        if let Some(info) = self.cached(spec.image_id)? {
            return self.held(spec, info, shared);
        }
        drop(shared);
        cx.progress(0, "waits for the image");
        let alone = cx.until_cancelled(async { Ok::<_, Error>(lock.write_owned().await) }).await?;
        let info = match self.cached(spec.image_id)? {
            Some(info) => info,
            None => {
                let turn = async { self.downloads.acquire().await.map_err(Error::internal) };
                let _turn = cx.until_cancelled(turn).await?;
                let info = Box::pin(download::Download::new(self, app, cx, spec)?.run()).await?;
                self.publish(spec.image_id, &info)?;
                info
            }
        };
        self.held(spec, info, alone.downgrade())
    }

    /// Removes an image, from shared storages that can be used as well; a success when it is not there.
    ///
    /// # Errors
    /// `in_use` while a volume on this host, or on one of the storages, is based on it.
    pub async fn delete(&self, app: &App, cx: &TaskCx, id: ImageId, storages: &[StorageSpec]) -> Result<()> {
        let lock = self.lock(id);
        let _alone = cx.until_cancelled(async { Ok::<_, Error>(lock.write_owned().await) }).await?;
        let mut dirs = vec![self.dir.clone()];
        for storage in storages {
            match cx.until_cancelled(app.looks.at(storage, Claim::No)).await {
                Ok(()) => dirs.push(on_shared::folder(storage)),
                Err(error) => {
                    tracing::warn!(storage.id = %storage.storage_id, image.id = %id, error = error.chain(), "an image stays on a storage that cannot be used");
                }
            }
        }
        for dir in &dirs {
            if let Some(volume) = users(dir, id)?.first() {
                let message = format!("volumes on the host are based on the image, such as {volume}");
                return Err(Error::new(Code::InUse, message));
            }
        }
        for dir in &dirs {
            // The description goes first: without it the file is not in the cache.
            for end in ["json", "json.tmp", "part.json", "part", "qcow2", "raw"] {
                super::remove_file(&file(dir, id, end))?;
            }
            // It is empty or it is not there.
            let _ = fs::remove_dir(file(dir, id, "users"));
        }
        Ok(())
    }

    /// Images in the cache.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<ImageId>> {
        let image = |name: String| name.strip_suffix(".json")?.parse().ok();
        Ok(super::names(&self.dir)?.into_iter().filter_map(image).collect())
    }

    /// Takes note that a volume is based on an image, before the volume is made.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn add_user(&self, id: ImageId, volume: VolumeId, path: &Path, storage: &StorageSpec) -> Result<()> {
        let users = file(&self.dir_on(storage), id, "users");
        let note = users.join(volume.to_string());
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&users)?;
            super::symlink(path, &note)
        };
        write().map_err(|e| FileError::new("could not note a volume in", &note, e).into())
    }

    /// Forgets a volume that is gone.
    ///
    /// # Errors
    /// When its note stays.
    pub fn remove_user(&self, volume: VolumeId, storage: &StorageSpec) -> Result<()> {
        let dir = self.dir_on(storage);
        for name in super::names(&dir)?.iter().filter(|n| n.ends_with(".users")) {
            super::remove_file(&dir.join(name).join(volume.to_string()))?;
        }
        Ok(())
    }

    fn dir_on(&self, storage: &StorageSpec) -> PathBuf {
        match storage.kind {
            StorageKind::Local => self.dir.clone(),
            StorageKind::Shared => on_shared::folder(storage),
        }
    }

    fn cached(&self, id: ImageId) -> Result<Option<ImageInfo>> {
        described(&self.dir, id)
    }

    fn held(&self, spec: &ImageSpec, info: ImageInfo, lock: OwnedRwLockReadGuard<()>) -> Result<Held> {
        accept(spec, &info)?;
        Ok(Held { path: self.path(spec.image_id, info.format), info, _lock: lock })
    }

    /// Gives a checked download its final name, then describes it; both durably.
    fn publish(&self, id: ImageId, info: &ImageInfo) -> Result<()> {
        let (part, path, note) = (self.file(id, "part"), self.path(id, info.format), self.file(id, "json"));
        let text = serde_json::to_vec(info).map_err(Error::internal)?;
        let publish = || {
            fs::rename(&part, &path)?;
            replace_file(&note, &text, 0o644)
        };
        publish().map_err(|e| FileError::new("could not finish", &path, e))?;
        super::remove_file(&self.file(id, "part.json"))?;
        Ok(())
    }

    fn remove_old_parts(&self) -> Result<()> {
        for name in super::names(&self.dir)?.iter().filter(|n| n.ends_with(".part")) {
            let path = self.dir.join(name);
            let age = fs::metadata(&path).and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > KEEP_PARTS) {
                super::remove_file(&path)?;
                super::remove_file(&path.with_extension("part.json"))?;
            }
        }
        Ok(())
    }

    fn lock(&self, id: ImageId) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        locks.insert(id, Arc::downgrade(&lock));
        lock
    }

    fn file(&self, id: ImageId, end: &str) -> PathBuf {
        file(&self.dir, id, end)
    }
}

fn file(dir: &Path, id: ImageId, end: &str) -> PathBuf {
    dir.join(format!("{id}.{end}"))
}

/// Volumes that are based on an image of a cache. A note of a volume that never came to be is removed, but
/// only while the folder of its storage is there to be looked at.
fn users(dir: &Path, id: ImageId) -> Result<Vec<String>> {
    let folder = file(dir, id, "users");
    let mut users = Vec::new();
    for name in super::names(&folder)? {
        let note = folder.join(&name);
        let Ok(volume) = fs::read_link(&note) else { continue };
        let gone = fs::symlink_metadata(&volume).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        if gone && volume.parent().is_some_and(Path::is_dir) {
            super::remove_file(&note)?;
        } else {
            users.push(name);
        }
    }
    Ok(users)
}

/// What a cache knows of an image; `None` when it is not there, or not whole.
fn described(dir: &Path, id: ImageId) -> Result<Option<ImageInfo>> {
    let note = file(dir, id, "json");
    let text = match fs::read(&note) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::new("could not read", &note, e).into()),
    };
    let Ok(info) = serde_json::from_slice::<ImageInfo>(&text) else { return Ok(None) };
    let whole = fs::symlink_metadata(file(dir, id, info.format.as_str())).is_ok_and(|m| m.len() == info.size.0);
    Ok(whole.then_some(info))
}

/// Checks what an image is against what a command expects of it.
fn accept(spec: &ImageSpec, info: &ImageInfo) -> Result<()> {
    if let Some(expected) = spec.sha256.as_deref().filter(|e| !e.eq_ignore_ascii_case(&info.sha256)) {
        let message = format!("the image has the SHA-256 {}, expected was {expected}", info.sha256);
        return Err(Error::new(Code::ChecksumMismatch, message));
    }
    if let Some(expected) = spec.format.filter(|e| *e != info.format) {
        let message = format!("the image is {}, expected was {}", info.format.as_str(), expected.as_str());
        return Err(Error::new(Code::ImageRejected, message));
    }
    if info.virtual_size > spec.max_virtual_size {
        let message =
            format!("the image's disk has {}, and at most {} are allowed", info.virtual_size, spec.max_virtual_size);
        return Err(Error::new(Code::ImageRejected, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
