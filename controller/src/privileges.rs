//! As whom a controller works: as the owner of its data folder. Root is needed for nothing, and a file
//! that root made in there could not be written by the service afterwards.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User};

/// Why the owner's place could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("this process could not become the owner of {path}")]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// When root runs this and the data folder is somebody else's, becomes that user for good. What root
/// alone may read or write must be open before. Called before the process has other threads.
///
/// # Errors
/// When the system refuses.
pub fn become_owner_of(data_dir: &Path) -> Result<(), Error> {
    let Some((uid, gid)) = owner_to_become(data_dir, Uid::effective()) else { return Ok(()) };
    let failed = |errno: nix::errno::Errno| Error { path: data_dir.to_owned(), source: errno.into() };
    let user = User::from_uid(uid).map_err(failed)?;
    match user.and_then(|user| std::ffi::CString::new(user.name).ok()) {
        Some(name) => nix::unistd::initgroups(&name, gid).map_err(failed)?,
        None => nix::unistd::setgroups(&[gid]).map_err(failed)?,
    }
    nix::unistd::setgid(gid).map_err(failed)?;
    nix::unistd::setuid(uid).map_err(failed)
}

fn owner_to_become(data_dir: &Path, me: Uid) -> Option<(Uid, Gid)> {
    let meta = std::fs::metadata(data_dir).ok()?;
    let (uid, gid) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
    (me.is_root() && !uid.is_root()).then_some((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_becomes_somebody_else_and_only_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let owner = std::fs::metadata(dir.path()).unwrap().uid();
        let expected = (owner != 0).then_some(owner);
        assert_eq!(owner_to_become(dir.path(), Uid::from_raw(0)).map(|(uid, _)| uid.as_raw()), expected);
        assert_eq!(owner_to_become(dir.path(), Uid::from_raw(4711)), None);
        assert_eq!(owner_to_become(&dir.path().join("missing"), Uid::from_raw(0)), None);
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(4711), Some(4712)).unwrap();
            assert_eq!(owner_to_become(dir.path(), Uid::from_raw(0)), Some((Uid::from_raw(4711), Gid::from_raw(4712))));
        }
    }
}
