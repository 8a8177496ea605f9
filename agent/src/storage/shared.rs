//! Storage of kind `shared`: a mount point that several hosts see. Volumes and the images that they are
//! based on lie there once.
//!
//! Before every use the path is looked at: it must be a mount point, take writes, and carry the marker file
//! with the storage's id. So nothing is ever written into the empty folder below a mount that was lost, nor
//! onto a file system that belongs to another storage. The first host to look at an empty file system writes
//! the marker; a host that has seen the marker once never writes it again.
//!
//! A file system whose server is gone may hang whoever touches it. So it is looked at on a thread of its
//! own with a limit, and no more than a few such threads are ever waited for.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use shared::api::storage::StorageKind;
use shared::id::StorageId;
use shared::wire::host::StorageSpec;
use shared::{Code, Error, Result};

use super::FileError;

/// Name of the file that says whose a file system is.
const MARKER: &str = ".kring-storage";
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at one storage that may be under way.
const MOST: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    storage_id: StorageId,
}

/// Whether a look may make a new file system the storage's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// An empty one, when this host has not seen the storage before.
    IfEmpty,
    /// Never.
    No,
}

/// Looks at shared storages, and remembers which looks have not come back.
#[derive(Debug, Default)]
pub struct Looks(Arc<Mutex<HashMap<StorageId, usize>>>);

impl Looks {
    /// Looks at a storage before it is used. One of another kind is always good.
    ///
    /// # Errors
    /// `unavailable` when it does not answer, `invalid_state` when it is not mounted or takes no writes,
    /// `conflict` when the file system is not this storage's.
    pub async fn at(&self, storage: &StorageSpec, claim: Claim) -> Result<()> {
        match storage.kind {
            StorageKind::Local => return Ok(()),
            StorageKind::Shared => {}
        }
        let hung = || Error::new(Code::Unavailable, format!("the file system at {} does not answer", storage.path));
        let guard = self.begin(storage.storage_id).ok_or_else(hung)?;
        let spec = storage.clone();
        let look = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            check(&spec, claim)
        });
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(checked) => checked.map_err(Error::internal)?,
            Err(_) => Err(hung()),
        }
    }

    fn begin(&self, id: StorageId) -> Option<Look> {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = looks.entry(id).or_default();
        if *under_way >= MOST {
            return None;
        }
        *under_way += 1;
        Some(Look { looks: Arc::clone(&self.0), id })
    }
}

/// One look that is under way.
struct Look {
    looks: Arc<Mutex<HashMap<StorageId, usize>>>,
    id: StorageId,
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(under_way) = looks.get_mut(&self.id) {
            *under_way -= 1;
            if *under_way == 0 {
                looks.remove(&self.id);
            }
        }
    }
}

/// Checks a storage; may hang when its server does not answer.
fn check(storage: &StorageSpec, claim: Claim) -> Result<()> {
    let path = Path::new(&storage.path);
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| FileError::new("could not read", Path::new("/proc/self/mountinfo"), e))?;
    if !is_mount_point(&table, &storage.path) {
        let text = format!("nothing is mounted at {} on the host: mount the shared file system there", storage.path);
        return Err(Error::new(Code::InvalidState, text));
    }
    access(path, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|e| {
        Error::new(Code::InvalidState, format!("the file system at {} takes no writes", storage.path))
            .caused_by(&io::Error::from(e))
    })?;
    let conflict = |text: String| Err(Error::new(Code::Conflict, text));
    match read_marker(path)? {
        Some(Some(id)) if id == storage.storage_id => Ok(()),
        Some(Some(id)) => {
            conflict(format!("the file system at {} belongs to storage {id}: mount the right one", storage.path))
        }
        Some(None) => conflict(format!("{}/{MARKER} cannot be read: it must name the storage", storage.path)),
        None if claim == Claim::No => {
            let text = "has lost the marker of its storage: it is another one, or was emptied";
            conflict(format!("the file system at {} {text}", storage.path))
        }
        None => {
            if let Some(name) = foreign(path)? {
                let text = "is not empty and is no storage of Kring's: choose an empty one";
                return conflict(format!("the file system at {} {text} (there is {name:?})", storage.path));
            }
            write_marker(path, storage.storage_id)?;
            // Another host may have been first, for another storage.
            match read_marker(path)? {
                Some(Some(id)) if id == storage.storage_id => Ok(()),
                _ => conflict(format!("the file system at {} was taken for another storage", storage.path)),
            }
        }
    }
}

/// Whether a path is where something is mounted, by the kernel's own list.
fn is_mount_point(mountinfo: &str, path: &str) -> bool {
    // What has a space, a tab, a line break or a backslash in it is written in octal; storages' paths have none.
    mountinfo.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

/// `None`: there is no marker; `Some(None)`: it says nothing.
fn read_marker(path: &Path) -> Result<Option<Option<StorageId>>> {
    let marker = path.join(MARKER);
    match fs::read(&marker) {
        Ok(text) => Ok(Some(serde_json::from_slice::<Marker>(&text).ok().map(|marker| marker.storage_id))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("could not read", &marker, e).into()),
    }
}

/// Something on a file system that is neither of the file system itself nor of a host that is just claiming it.
fn foreign(path: &Path) -> Result<Option<String>> {
    let names = super::names(path)?;
    Ok(names.into_iter().find(|name| name != "lost+found" && name != ".snapshot" && !name.starts_with(MARKER)))
}

/// Writes the marker unless there is one: it appears whole, and never in place of another host's.
fn write_marker(path: &Path, storage_id: StorageId) -> Result<()> {
    let (marker, temp) = (path.join(MARKER), path.join(format!("{MARKER}.{}", uuid::Uuid::new_v4())));
    let text = serde_json::to_vec(&Marker { storage_id }).map_err(Error::internal)?;
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temp)?;
        file.write_all(&text)?;
        file.sync_all()?;
        link_new(&temp, &marker)
    };
    let written = write();
    let _ = fs::remove_file(&temp);
    written.map_err(|e| FileError::new("could not write", &marker, e))?;
    tracing::info!(storage.id = %storage_id, path = %path.display(), "an empty file system is this storage from now on");
    Ok(())
}

/// Gives a complete file its final name, unless another has it: then that one stays.
pub fn link_new(temp: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temp, path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(path: &Path) -> StorageSpec {
        StorageSpec { storage_id: StorageId::new(), path: path.display().to_string(), kind: StorageKind::Shared }
    }

    #[test]
    fn only_the_very_path_of_a_mount_counts() {
        let table = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                     40 22 0:35 / /mnt/vms rw,relatime shared:1 - nfs4 server:/vms rw\n";
        assert!(is_mount_point(table, "/mnt/vms"));
        for other in ["/mnt", "/mnt/vms/x", "/mnt/vm", ""] {
            assert!(!is_mount_point(table, other), "{other}");
        }
    }

    #[tokio::test]
    async fn an_empty_folder_below_a_lost_mount_is_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Looks::default().at(&storage(dir.path()), Claim::IfEmpty).await.unwrap_err();
        assert!(refused.code == Code::InvalidState && refused.message.contains("nothing is mounted"), "{refused}");
        assert!(crate::storage::names(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn the_first_to_claim_has_it_and_what_is_not_empty_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (StorageId::new(), StorageId::new());
        write_marker(dir.path(), first).unwrap();
        write_marker(dir.path(), second).unwrap();
        assert_eq!(read_marker(dir.path()).unwrap(), Some(Some(first)));
        assert_eq!(crate::storage::names(dir.path()).unwrap(), [MARKER]);
        assert_eq!(foreign(dir.path()).unwrap(), None);
        fs::write(dir.path().join("letter.txt"), "x").unwrap();
        assert_eq!(foreign(dir.path()).unwrap().as_deref(), Some("letter.txt"));
        fs::write(dir.path().join(MARKER), "rubbish").unwrap();
        assert_eq!(read_marker(dir.path()).unwrap(), Some(None));
    }

    #[tokio::test]
    async fn no_more_than_a_few_looks_hang() {
        let looks = Looks::default();
        let spec = storage(Path::new("/nonexistent"));
        let held: Vec<_> = (0..MOST).map(|_| looks.begin(spec.storage_id).unwrap()).collect();
        let refused = looks.at(&spec, Claim::No).await.unwrap_err();
        assert_eq!(refused.code, Code::Unavailable);
        drop(held);
        assert_eq!(looks.at(&spec, Claim::No).await.unwrap_err().code, Code::InvalidState);
    }
}
