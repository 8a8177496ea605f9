//! Network namespaces, each held by a mount below the run folder: not by name in `/run/netns`, so
//! that agents in different namespaces of one machine never meet.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use tokio::sync::oneshot;

use super::Error;

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: PathBuf,
}

/// What a namespace is to the kernel: another one under the same path differs.
pub type Identity = (u64, u64);

impl Namespace {
    /// The namespace that is held by `path`, there or not.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is held.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The argument by which `nsenter` enters it.
    #[must_use]
    pub fn nsenter_arg(&self) -> String {
        format!("--net={}", self.path.display())
    }

    /// Whether it is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        statfs(&self.path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
    }

    /// Which one it is; `None` when it is not there.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        if !self.exists() {
            return None;
        }
        let meta = std::fs::metadata(&self.path).ok()?;
        Some((meta.dev(), meta.ino()))
    }

    /// Makes it when it is not there. Returns whether it was made.
    pub async fn ensure(&self) -> Result<bool, Error> {
        if self.exists() {
            return Ok(false);
        }
        let path = self.path.clone();
        on_thread(move || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            File::create(&path)?;
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        })
        .await
        .map_err(|source| Error::Namespace { doing: "made", path: self.path.clone(), source })?;
        Ok(true)
    }

    /// Runs `work` inside, on a thread of its own. Sockets that it opens stay inside; so do
    /// `/proc/sys/net` and everything else of the network that it touches.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let path = self.path.clone();
        on_thread(move || {
            setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
            work()
        })
        .await
        .map_err(|source| Error::Namespace { doing: "entered", path: self.path.clone(), source })
    }

    /// Lets it go; the kernel removes it when nothing runs in it any more. A success when it is not there.
    pub fn remove(&self) -> Result<(), Error> {
        let failed = |source| Error::Namespace { doing: "removed", path: self.path.clone(), source };
        while self.exists() {
            umount2(&self.path, MntFlags::MNT_DETACH).map_err(|e| failed(e.into()))?;
        }
        match std::fs::remove_file(&self.path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }
}

/// Runs `work` on a thread of its own, which ends with it: a thread that has changed its namespace
/// must not serve anything else.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        // The caller may have given up.
        let _ = answer.send(work());
    })?;
    answered.await.map_err(io::Error::other)?
}
