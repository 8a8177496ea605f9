//! What lies on disks: the image cache and the volumes of storages. [`local`] makes volumes as files, which
//! serves both kinds of storage; [`shared`] checks a mount point before each use.
//!
//! Paths are built only from a folder of the configuration or of a storage and from ids, never from
//! names. A file of Kring appears under its final name only when it is complete.

pub mod images;
pub mod local;
pub mod qemu_img;
pub mod shared;

use std::io;
use std::path::{Path, PathBuf};

use ::shared::{Code, Error};

/// Why something on a disk could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}")]
pub struct FileError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    /// What was being done to which path.
    pub fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self { doing, path: path.to_owned(), source }
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        let full = matches!(error.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let base = if full {
            Self::new(Code::NoSpace, "no space is left on the host's disk")
        } else {
            Self::new(Code::HostFailed, "a file on the host could not be worked on")
        };
        base.with_detail(format!("{error}: {}", error.source)).caused_by(&error.source)
    }
}

/// Removes a file or link; a success when it is not there.
///
/// # Errors
/// When it stays.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::new("could not remove", path, e)),
        _ => Ok(()),
    }
}

/// Names in a folder that are text; none when the folder is not there.
///
/// # Errors
/// When the folder is there and cannot be read to its end.
pub fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let failed = |e| FileError::new("could not list", folder, e);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Makes or replaces a symbolic link.
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    match std::fs::remove_file(link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    std::os::unix::fs::symlink(target, link)
}
