//! Volumes as files `<path>/volumes/<volume-id>.<qcow2|raw>`: on the host's own disk, or on a shared
//! storage, which is looked at before each use (see [`super::shared`]).
//!
//! A volume is made under a temporary name and renamed when it is complete, so what has the final
//! name is whole. Temporary files of a volume go with the volume.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc::O_NOFOLLOW;
use shared::api::image::DiskFormat;
use shared::api::storage::StorageKind;
use shared::id::{StorageId, VolumeId};
use shared::units::Bytes;
use shared::wire::host::{StorageReport, StorageSpec};
use shared::wire::volume::VolumeSpec;
use shared::{Code, Error, Result};

use super::shared::Claim;
use super::{FileError, qemu_img};
use crate::app::App;
use crate::config::is_plain_absolute;
use crate::task::TaskCx;

const FORMATS: [DiskFormat; 2] = [DiskFormat::Qcow2, DiskFormat::Raw];
/// Disks are counted in sectors.
const SECTOR: u64 = 512;

/// The file of a volume.
///
/// # Errors
/// `invalid_request` when the storage's path is not absolute and plain.
pub fn volume_path(storage: &StorageSpec, id: VolumeId, format: DiskFormat) -> Result<PathBuf> {
    Ok(folder(storage)?.join(format!("{id}.{}", format.as_str())))
}

/// Makes a volume, with its base image in the cache; a success when it exists with the same size and
/// base. Answers with its file.
///
/// # Errors
/// `conflict` when it exists otherwise, `no_space`, those of the image, `invalid_request`.
pub async fn ensure(app: &Arc<App>, cx: &TaskCx, spec: &VolumeSpec) -> Result<PathBuf> {
    if spec.size.0 == 0 || !spec.size.0.is_multiple_of(SECTOR) {
        return Err(Error::invalid("size", format!("must be a multiple of {SECTOR} bytes, and not zero")));
    }
    let path = volume_path(&spec.storage, spec.volume_id, spec.format)?;
    look(app, cx, &spec.storage).await?;
    open_folder(&app.config.agent.data_dir, &spec.storage)?;
    if exists(&path)? {
        compare(app, cx, spec, &path).await?;
        return Ok(path);
    }
    for other in FORMATS.into_iter().filter(|f| *f != spec.format) {
        if exists(&volume_path(&spec.storage, spec.volume_id, other)?)? {
            let message = format!("the volume exists in the format {}", other.as_str());
            return Err(Error::new(Code::Conflict, message));
        }
    }
    let temp = folder(&spec.storage)?.join(format!(".{}.{}.tmp", spec.volume_id, cx.task_id));
    let made = make(app, cx, spec, &path, &temp).await;
    if made.is_err() {
        // Nothing stays of a volume that could not be made; a failure to remove is found by its delete.
        let _ = fs::remove_file(&temp);
    }
    made.map(|()| path)
}

async fn make(app: &Arc<App>, cx: &TaskCx, spec: &VolumeSpec, path: &Path, temp: &Path) -> Result<()> {
    let Some(image) = &spec.base else {
        cx.progress(50, "makes a volume");
        qemu_img::create(temp, spec.format, spec.size, None, cx).await?;
        return publish(temp, path);
    };
    let base = app.images.ensure_on(app, cx, image, &spec.storage).await?;
    if spec.size < base.info.virtual_size {
        let message = format!("is smaller than its image, which has {}", base.info.virtual_size);
        return Err(Error::invalid("size", message));
    }
    cx.progress(90, "makes a volume");
    match spec.format {
        DiskFormat::Qcow2 => {
            app.images.add_user(image.image_id, spec.volume_id, path, &spec.storage)?;
            qemu_img::create(temp, spec.format, spec.size, Some((&base.path, base.info.format)), cx).await?;
        }
        DiskFormat::Raw => {
            qemu_img::convert((&base.path, base.info.format), (temp, DiskFormat::Raw), cx).await?;
            let grow = || fs::OpenOptions::new().write(true).open(temp)?.set_len(spec.size.0);
            grow().map_err(|e| FileError::new("could not enlarge", temp, e))?;
        }
    }
    publish(temp, path)
}

/// Gives a complete file its final name, durably.
fn publish(temp: &Path, path: &Path) -> Result<()> {
    let publish = || {
        fs::set_permissions(temp, fs::Permissions::from_mode(0o600))?;
        fs::OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(temp)?.sync_all()?;
        fs::rename(temp, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    publish().map_err(|e| FileError::new("could not finish", path, e).into())
}

/// Checks that a volume is as it would be made now.
async fn compare(app: &App, cx: &TaskCx, spec: &VolumeSpec, path: &Path) -> Result<()> {
    let info = qemu_img::info(path, spec.format, cx).await?;
    if info.virtual_size != spec.size.0 {
        let message = format!("the volume exists with the size {}", Bytes(info.virtual_size));
        return Err(Error::new(Code::Conflict, message));
    }
    if spec.format == DiskFormat::Raw {
        // A raw disk does not tell what it was copied from.
        return Ok(());
    }
    let base_fits = match (&info.backing_filename, &spec.base) {
        (None, None) => true,
        (Some(file), Some(image)) => {
            FORMATS.into_iter().any(|format| *file == app.images.path_on(image.image_id, format, &spec.storage))
        }
        _ => false,
    };
    if base_fits { Ok(()) } else { Err(Error::new(Code::Conflict, "the volume exists with another base")) }
}

/// Removes a volume with its temporary files; a success when it is not there.
///
/// # Errors
/// `in_use` while a domain has it as a disk.
pub async fn delete(app: &Arc<App>, cx: &TaskCx, id: VolumeId, storage: &StorageSpec) -> Result<()> {
    let folder = folder(storage)?;
    cx.until_cancelled(app.looks.at(storage, Claim::No)).await?;
    let paths: Vec<PathBuf> = FORMATS.iter().map(|f| folder.join(format!("{id}.{}", f.as_str()))).collect();
    let mut present = false;
    for path in &paths {
        present |= exists(path)?;
    }
    if present {
        let used = cx.until_cancelled(app.hypervisor.disk_paths()).await?;
        if used.iter().any(|u| paths.contains(u)) {
            return Err(Error::new(Code::InUse, "a domain on the host has the volume as a disk"));
        }
    }
    for path in &paths {
        remove(path)?;
    }
    let prefix = format!(".{id}.");
    for name in names(&folder)?.into_iter().filter(|name| name.starts_with(&prefix)) {
        remove(&folder.join(name))?;
    }
    app.images.remove_user(id, storage)
}

/// Looks at a storage before it is used. One that this host has used before is never claimed anew.
///
/// # Errors
/// Those of [`super::shared::Looks::at`].
pub async fn look(app: &App, cx: &TaskCx, storage: &StorageSpec) -> Result<()> {
    let seen = fs::symlink_metadata(note(&app.config.agent.data_dir, storage)).is_ok();
    let claim = if seen { Claim::No } else { Claim::IfEmpty };
    cx.until_cancelled(app.looks.at(storage, claim)).await
}

/// Volumes of a storage, complete ones only.
///
/// # Errors
/// When the folder cannot be read; never a list that is too short.
pub fn list(storage: &StorageSpec) -> Result<Vec<VolumeId>> {
    let volume = |name: String| {
        let (id, format) = name.split_once('.')?;
        FORMATS.iter().any(|f| f.as_str() == format).then(|| id.parse().ok()).flatten()
    };
    Ok(names(&folder(storage)?)?.into_iter().filter_map(volume).collect())
}

/// The file system that a storage lies on; its folder is made when it is missing.
///
/// # Errors
/// When the folder cannot be made or read.
pub fn report(data_dir: &Path, storage: &StorageSpec) -> Result<StorageReport> {
    let folder = open_folder(data_dir, storage)?;
    let (total, available) = space(&folder)?;
    Ok(StorageReport { storage_id: storage.storage_id, total, available, error: None })
}

/// Size of the file system of a path and what is free on it for ordinary users.
///
/// # Errors
/// When the path does not exist.
pub fn space(path: &Path) -> Result<(Bytes, Bytes)> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(|e| FileError::new("could not look at", path, e.into()))?;
    let block = stat.fragment_size();
    Ok((Bytes(stat.blocks().saturating_mul(block)), Bytes(stat.blocks_available().saturating_mul(block))))
}

/// Storages that this host has kept volumes on: what a purge must look at.
///
/// # Errors
/// When the notes cannot be read.
pub fn known_storages(data_dir: &Path) -> Result<Vec<StorageSpec>> {
    let notes = data_dir.join("storages");
    let mut known = Vec::new();
    for name in names(&notes)? {
        let (id, kind) = match name.strip_suffix(SHARED) {
            Some(id) => (id, StorageKind::Shared),
            None => (name.as_str(), StorageKind::Local),
        };
        let Ok(storage_id) = id.parse::<StorageId>() else { continue };
        if let Ok(path) = fs::read_link(notes.join(&name)) {
            known.push(StorageSpec { storage_id, path: path.to_string_lossy().into_owned(), kind });
        }
    }
    Ok(known)
}

/// Removes all volumes of a storage, in use or not, and its folder when nothing else is in it. What lies on
/// a shared storage belongs to the other hosts as well, and stays.
///
/// # Errors
/// When a file cannot be removed.
pub fn purge(storage: &StorageSpec) -> Result<usize> {
    if storage.kind == StorageKind::Shared {
        return Ok(0);
    }
    let folder = folder(storage)?;
    let mut removed = 0;
    for name in names(&folder)? {
        let stem = name.trim_start_matches('.').split('.').next().unwrap_or_default();
        if stem.parse::<VolumeId>().is_ok() {
            remove(&folder.join(&name))?;
            removed += 1;
        }
    }
    // Both stay when the operator keeps something of their own in them.
    let _ = fs::remove_dir(&folder);
    let _ = fs::remove_dir(&storage.path);
    Ok(removed)
}

fn folder(storage: &StorageSpec) -> Result<PathBuf> {
    let path = Path::new(&storage.path);
    if !is_plain_absolute(path) || path.parent().is_none() || storage.path.contains(['\0', '\n', ',']) {
        let message = "must be an absolute path without `..` and commas, and not the root";
        return Err(Error::invalid("storage.path", message));
    }
    Ok(path.join("volumes"))
}

/// End of the name of a shared storage's note.
const SHARED: &str = ".shared";

/// Where this host notes that it has used a storage.
fn note(data_dir: &Path, storage: &StorageSpec) -> PathBuf {
    let end = if storage.kind == StorageKind::Shared { SHARED } else { "" };
    data_dir.join("storages").join(format!("{}{end}", storage.storage_id))
}

/// Makes the folder when it is missing, and a note of it for a later purge.
fn open_folder(data_dir: &Path, storage: &StorageSpec) -> Result<PathBuf> {
    let folder = folder(storage)?;
    let make = |path: &Path, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    make(&folder, 0o711).map_err(|e| FileError::new("could not make", &folder, e))?;
    let (notes, note) = (data_dir.join("storages"), note(data_dir, storage));
    if fs::read_link(&note).ok().as_deref() != Some(Path::new(&storage.path)) {
        let write = || {
            make(&notes, 0o755)?;
            super::symlink(Path::new(&storage.path), &note)
        };
        write().map_err(|e| FileError::new("could not note a storage in", &note, e))?;
    }
    Ok(folder)
}

/// Whether a regular file is there. Anything else under a volume's name is not touched.
fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => Ok(true),
        Ok(_) => Err(Error::new(Code::Conflict, "something that is not a file has the volume's name")
            .with_detail(path.display().to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::new("could not look at", path, e).into()),
    }
}

fn remove(path: &Path) -> Result<()> {
    super::remove_file(path).map_err(Into::into)
}

/// Names in a folder; none when the folder is not there.
fn names(folder: &Path) -> Result<Vec<String>> {
    super::names(folder).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(path: &str) -> StorageSpec {
        StorageSpec { storage_id: StorageId::new(), path: path.into(), kind: StorageKind::Local }
    }

    #[test]
    fn a_path_is_built_only_below_a_plain_absolute_folder() {
        let id = VolumeId::new();
        let path = volume_path(&storage("/srv/kring"), id, DiskFormat::Raw).unwrap();
        assert_eq!(path, Path::new(&format!("/srv/kring/volumes/{id}.raw")));
        for bad in ["", "/", "srv", "/srv/../etc", "/srv/./x/..", "/a\n", "/a,b"] {
            let error = volume_path(&storage(bad), id, DiskFormat::Raw).unwrap_err();
            assert_eq!(error.code, Code::InvalidRequest, "{bad:?}");
        }
    }

    #[test]
    fn only_complete_volumes_are_listed_and_a_purge_takes_all_of_kring() {
        let dir = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir().unwrap();
        let spec = storage(dir.path().join("pool").to_str().unwrap());
        assert!(report(data.path(), &spec).unwrap().total > Bytes(0));
        let id = VolumeId::new();
        let folder = folder(&spec).unwrap();
        for name in [format!("{id}.qcow2"), format!(".{id}.x.tmp"), "notes.txt".into(), format!("{id}.vmdk")] {
            fs::write(folder.join(name), "x").unwrap();
        }
        assert_eq!(list(&spec).unwrap(), [id]);
        assert_eq!(known_storages(data.path()).unwrap(), std::slice::from_ref(&spec));
        let others = StorageSpec { kind: StorageKind::Shared, ..spec.clone() };
        assert_eq!(purge(&others).unwrap(), 0);
        assert_eq!(list(&spec).unwrap(), [id]);
        assert_eq!(purge(&spec).unwrap(), 3);
        assert_eq!(names(&folder).unwrap(), ["notes.txt"]);
    }

    #[test]
    fn a_link_under_a_volumes_name_is_no_volume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.raw");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(exists(&path).unwrap_err().code, Code::Conflict);
    }
}
