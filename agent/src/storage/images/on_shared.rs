//! Images on shared storages: `<path>/images/<image-id>.<qcow2|raw>` with its description beside it, once
//! for all hosts, so that a volume's base has the same path on each.
//!
//! A host fetches an image into its own cache and copies it from there. Two hosts may do so at the same
//! time: each writes a file of its own, and the first gives it the final name; the other's goes. A file
//! that has its name is never replaced, for a guest on another host may have it open.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shared::api::image::DiskFormat;
use shared::api::storage::StorageKind;
use shared::id::ImageId;
use shared::wire::host::StorageSpec;
use shared::wire::image::{ImageInfo, ImageSpec};
use shared::{Error, Result};

use super::{Held, Images, accept, described, file};
use crate::app::App;
use crate::storage::FileError;
use crate::storage::shared::link_new;
use crate::task::TaskCx;

/// Bytes that are copied before it is asked whether to go on.
const PIECE: usize = 4 << 20;

/// The folder of a shared storage's images.
#[must_use]
pub fn folder(storage: &StorageSpec) -> PathBuf {
    Path::new(&storage.path).join("images")
}

impl Images {
    /// Brings an image to where volumes of a storage are based on it, and holds it.
    ///
    /// # Errors
    /// Those of [`Images::ensure`].
    pub async fn ensure_on(&self, app: &App, cx: &TaskCx, spec: &ImageSpec, storage: &StorageSpec) -> Result<Held> {
        match storage.kind {
            StorageKind::Local => return Box::pin(self.ensure(app, cx, spec)).await,
            StorageKind::Shared => {}
        }
        let (dir, id) = (folder(storage), spec.image_id);
        let lock = self.lock(id);
        let read = cx.until_cancelled(async { Ok::<_, Error>(Arc::clone(&lock).read_owned().await) }).await?;
        if let Some(info) = described(&dir, id)? {
            accept(spec, &info)?;
            return Ok(Held { path: file(&dir, id, info.format.as_str()), info, _lock: read });
        }
        drop(read);
        let held = Box::pin(self.ensure(app, cx, spec)).await?;
        cx.progress(60, "copies the image to the shared storage");
        let (from, info, to, cx) = (held.path.clone(), held.info.clone(), dir.clone(), cx.clone());
        let copied = tokio::task::spawn_blocking(move || copy(&from, &to, id, &info, &cx));
        copied.await.map_err(Error::internal)??;
        Ok(Held { path: file(&dir, id, held.info.format.as_str()), ..held })
    }

    /// The path that a volume of a storage has its base at.
    #[must_use]
    pub fn path_on(&self, id: ImageId, format: DiskFormat, storage: &StorageSpec) -> PathBuf {
        match storage.kind {
            StorageKind::Local => self.path(id, format),
            StorageKind::Shared => file(&folder(storage), id, format.as_str()),
        }
    }
}

/// Copies an image and describes it, both durably and without replacing what is there.
fn copy(from: &Path, dir: &Path, id: ImageId, info: &ImageInfo, cx: &TaskCx) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|e| FileError::new("could not make", dir, e))?;
    let (path, note) = (file(dir, id, info.format.as_str()), file(dir, id, "json"));
    let temp = dir.join(format!(".{id}.{}.tmp", cx.task_id));
    let text = serde_json::to_vec(info).map_err(Error::internal)?;
    let failed = |e| Error::from(FileError::new("could not copy to", &path, e));
    let work = || {
        let mut source = fs::File::open(from).map_err(failed)?;
        let mut target = create(&temp).map_err(failed)?;
        let mut piece = vec![0; PIECE];
        loop {
            cx.check()?;
            let read = source.read(&mut piece).map_err(failed)?;
            if read == 0 {
                break;
            }
            target.write_all(&piece[..read]).map_err(failed)?;
        }
        target.sync_all().map_err(failed)?;
        drop(target);
        link_new(&temp, &path).map_err(failed)?;
        fs::remove_file(&temp).map_err(failed)?;
        let mut target = create(&temp).map_err(failed)?;
        target.write_all(&text).and_then(|()| target.sync_all()).map_err(failed)?;
        link_new(&temp, &note).map_err(failed)
    };
    let done = work();
    let _ = fs::remove_file(&temp);
    done
}

fn create(path: &Path) -> std::io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use ::shared::id::TaskId;
    use ::shared::units::Bytes;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn the_first_copy_stays_and_no_part_of_one_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, id) = (dir.path().join("cached"), dir.path().join("images"), ImageId::new());
        fs::write(&from, "content").unwrap();
        let info =
            ImageInfo { format: DiskFormat::Raw, sha256: String::new(), size: Bytes(7), virtual_size: Bytes(512) };
        let cx = || TaskCx::new(TaskId::new(), 1, Instant::now() + Duration::from_secs(60), CancellationToken::new());
        copy(&from, &to, id, &info, &cx()).unwrap();
        assert_eq!(described(&to, id).unwrap(), Some(info.clone()));
        let first = fs::File::open(file(&to, id, "raw")).unwrap();
        copy(&from, &to, id, &info, &cx()).unwrap();
        let (a, b) = (first.metadata().unwrap(), fs::metadata(file(&to, id, "raw")).unwrap());
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&a), std::os::unix::fs::MetadataExt::ino(&b));
        let cancelled = cx();
        cancelled.cancel.cancel();
        assert!(copy(&from, &to, ImageId::new(), &info, &cancelled).is_err());
        assert_eq!(crate::storage::names(&to).unwrap().len(), 2);
    }
}
