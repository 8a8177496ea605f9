//! The way of a migration from one host to another: streams between the two agents.
//!
//! ```text
//! source                                                         target
//! libvirtd ─┐                                                 ┌─ libvirtd's socket
//! QEMU ─────┤ unix sockets ─ agent ══ mutual TLS, 7443 ══ agent ┤ QEMU's socket for memory
//! QEMU ─────┘                                                 └─ QEMU's socket for disks
//! ```
//!
//! libvirt and QEMU speak to sockets on their own host only; what crosses the network is the agents' TLS with
//! the certificates of Kring's own authority. No port is open besides the agent's, and a host is let in only
//! while a migration from it is prepared, for the VM that is meant.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use shared::id::{HostId, ResourceId, VmId};
use shared::wire::{STREAM_PROTOCOL, host_dns_name};
use shared::{Code, Error, Result};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::storage::FileError;

/// How long a connection to the other agent may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the two libvirts say to each other.
    Libvirt,
    /// Guest memory.
    Memory,
    /// Disks.
    Disks,
}

impl Part {
    const ALL: [Self; 3] = [Self::Libvirt, Self::Memory, Self::Disks];

    /// The word in a path.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::Memory => "memory",
            Self::Disks => "disks",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.as_str() == word)
    }
}

/// Beginning of the paths of a VM's sockets: in a folder where QEMU may make them.
#[must_use]
pub fn sockets(app: &App, vm_id: VmId) -> PathBuf {
    // A socket's path has at most 107 characters.
    app.config.libvirt.migration_dir.join(vm_id.uuid().simple().to_string())
}

fn socket(sockets: &Path, part: Part) -> PathBuf {
    sockets.with_extension(part.as_str())
}

/// Makes the folder of the sockets: QEMU's user must be able to use it, and nobody else.
fn make_folder(sockets: &Path) -> Result<(u32, u32)> {
    let folder = sockets.parent().unwrap_or(Path::new("/"));
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(folder)?;
        // It lies in a folder of QEMU's user, or of root, who runs QEMU then.
        let owner = fs::metadata(folder.parent().unwrap_or(folder))?;
        std::os::unix::fs::chown(folder, Some(owner.uid()), Some(owner.gid()))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        Ok((owner.uid(), owner.gid()))
    };
    make().map_err(|e: io::Error| FileError::new("could not make", folder, e).into())
}

/// Makes sure that nothing is left of an earlier migration of a VM.
///
/// # Errors
/// When the folder cannot be made, or a socket stays.
pub fn clear(sockets: &Path) -> Result<()> {
    make_folder(sockets)?;
    for part in Part::ALL {
        crate::storage::remove_file(&socket(sockets, part))?;
    }
    Ok(())
}

/// The migrations that this host is ready to take, by VM: from which host.
#[derive(Debug, Default)]
pub struct Expected(Mutex<HashMap<VmId, HostId>>);

impl Expected {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, HostId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM may come from a host.
    pub fn add(&self, vm_id: VmId, from: HostId) {
        self.all().insert(vm_id, from);
    }

    /// It may not any more.
    pub fn remove(&self, vm_id: VmId) {
        self.all().remove(&vm_id);
    }

    /// Whether anything may come from a host.
    #[must_use]
    pub fn knows(&self, from: HostId) -> bool {
        self.all().values().any(|host| *host == from)
    }

    /// Whether this VM may come from this host.
    #[must_use]
    pub fn allows(&self, vm_id: VmId, from: HostId) -> bool {
        self.all().get(&vm_id) == Some(&from)
    }
}

/// Opens the end of a stream on the host that takes a VM over.
///
/// # Errors
/// `forbidden` when no migration of this VM from this host is prepared; `host_failed` when nobody listens.
pub async fn accept(app: &App, vm_id: VmId, from: HostId, part: Part) -> Result<UnixStream> {
    if !app.expected.allows(vm_id, from) {
        return Err(Error::new(Code::Forbidden, format!("no migration of VM {vm_id} from host {from} is prepared")));
    }
    let path = match part {
        Part::Libvirt => app.config.libvirt.socket(),
        Part::Memory | Part::Disks => socket(&sockets(app, vm_id), part),
    };
    UnixStream::connect(&path).await.map_err(|e| {
        Error::new(Code::HostFailed, format!("nobody listens at {} for {}", path.display(), part.as_str()))
            .caused_by(&e)
    })
}

/// Streams from this host to another, for one migration; they end when this is dropped.
pub struct Outgoing {
    stop: CancellationToken,
    sockets: PathBuf,
    libvirt: PathBuf,
    /// Why a stream did not come about: libvirt only sees that it ended.
    failure: Arc<Mutex<Option<Error>>>,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.stop.cancel();
        for path in [socket(&self.sockets, Part::Memory), socket(&self.sockets, Part::Disks), self.libvirt.clone()] {
            let _ = fs::remove_file(path);
        }
    }
}

impl Outgoing {
    /// Opens the sockets that libvirt and QEMU are told of; what connects there is carried to `to`.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn open(app: &Arc<App>, vm_id: VmId, to: HostId, address: &str, sockets: &Path) -> Result<Self> {
        let owner = make_folder(sockets)?;
        let libvirt = app.config.agent.run_dir.join(format!("migrate-{}", vm_id.uuid().simple()));
        let outgoing = Self {
            stop: app.shutdown.child_token(),
            sockets: sockets.to_owned(),
            libvirt: libvirt.clone(),
            failure: Arc::default(),
        };
        let paths = [
            (Part::Libvirt, libvirt),
            (Part::Memory, socket(sockets, Part::Memory)),
            (Part::Disks, socket(sockets, Part::Disks)),
        ];
        for (part, path) in paths {
            let listener = listen(&path, owner).map_err(|e| FileError::new("could not listen at", &path, e))?;
            let way = Way { app: Arc::clone(app), vm_id, to, address: address.to_string(), part };
            app.tracker.spawn(carry(listener, way, outgoing.stop.clone(), Arc::clone(&outgoing.failure)));
        }
        Ok(outgoing)
    }

    /// The URI of the other host's libvirt.
    #[must_use]
    pub fn libvirt_uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.libvirt.display())
    }

    /// The URI of guest memory.
    #[must_use]
    pub fn memory_uri(&self) -> String {
        format!("unix://{}", socket(&self.sockets, Part::Memory).display())
    }

    /// The URI of disks.
    #[must_use]
    pub fn disks_uri(&self) -> String {
        format!("unix://{}", socket(&self.sockets, Part::Disks).display())
    }

    /// Why a stream did not come about.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A socket that QEMU's user may connect to.
fn listen(path: &Path, (uid, gid): (u32, u32)) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    Ok(listener)
}

/// Where what connects to a socket is carried.
struct Way {
    app: Arc<App>,
    vm_id: VmId,
    to: HostId,
    address: String,
    part: Part,
}

async fn carry(listener: UnixListener, way: Way, stop: CancellationToken, failure: Arc<Mutex<Option<Error>>>) {
    let way = Arc::new(way);
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((mut near, _)) = accepted else { continue };
        let (way, stop, failure) = (Arc::clone(&way), stop.clone(), Arc::clone(&failure));
        way.app.tracker.clone().spawn(async move {
            let work = async {
                let mut far = connect(&way).await?;
                tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 1 << 20, 1 << 20)
                    .await
                    .map_err(|e| Error::new(Code::HostUnreachable, "a stream to the other host broke off").caused_by(&e))
            };
            match stop.run_until_cancelled(work).await {
                Some(Ok((up, down))) => {
                    tracing::debug!(vm.id = %way.vm_id, part = way.part.as_str(), up, down, "a stream has ended");
                }
                Some(Err(error)) => {
                    tracing::warn!(vm.id = %way.vm_id, part = way.part.as_str(), error = error.chain(), "a stream failed");
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
                None => {}
            }
        });
    }
}

/// Connects to the other host's agent and has it open its end.
async fn connect(way: &Way) -> Result<TokioIo<hyper::upgrade::Upgraded>> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        let text = format!("the agent of host {} cannot be reached at {} from this host", way.to, way.address);
        Error::new(Code::HostUnreachable, text).caused_by(error)
    };
    let work = async {
        let stream = TcpStream::connect(&way.address).await.map_err(|e| failed(&e))?;
        stream.set_nodelay(true).map_err(|e| failed(&e))?;
        let name = ServerName::try_from(host_dns_name(way.to)).map_err(|e| Error::internal(e.to_string()))?;
        let tls = TlsConnector::from(Arc::clone(&way.app.identity.load().to_hosts));
        let stream = tls.connect(name, stream).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        let request = http::Request::builder()
            .method(Method::GET)
            .uri(format!("/v1/migrations/{}/{}", way.vm_id, way.part.as_str()))
            .header(header::HOST, host_dns_name(way.to))
            .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
            .header(header::UPGRADE, HeaderValue::from_static(STREAM_PROTOCOL))
            .body(Empty::<Bytes>::new())
            .map_err(Error::internal)?;
        let answer = async {
            let mut response = sender.send_request(request).await.map_err(|e| failed(&e))?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return hyper::upgrade::on(&mut response).await.map_err(|e| failed(&e));
            }
            let body = Limited::new(response.into_body(), 64 << 10).collect().await;
            let body = body.map_err(|e| failed(e.as_ref()))?.to_bytes();
            Err(serde_json::from_slice(&body)
                .unwrap_or_else(|_| Error::new(Code::HostFailed, "the other agent did not open a stream")))
        };
        let connection = connection.with_upgrades();
        tokio::pin!(connection, answer);
        let stream = tokio::select! {
            biased;
            stream = &mut answer => stream,
            _ = &mut connection => answer.await,
        };
        stream.map(TokioIo::new)
    };
    let late = || {
        Error::new(Code::HostUnreachable, format!("the agent of host {} does not answer at {}", way.to, way.address))
    };
    tokio::time::timeout(CONNECT, work).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_vm_that_is_meant_comes_from_the_host_that_is_meant() {
        let (expected, vm, host) = (Expected::default(), VmId::new(), HostId::new());
        assert!(!expected.knows(host));
        expected.add(vm, host);
        assert!(expected.knows(host) && expected.allows(vm, host));
        assert!(!expected.allows(VmId::new(), host) && !expected.allows(vm, HostId::new()));
        expected.remove(vm);
        assert!(!expected.knows(host) && !expected.allows(vm, host));
    }

    #[test]
    fn a_stream_is_known_by_its_word() {
        for part in Part::ALL {
            assert_eq!(Part::parse(part.as_str()), Some(part));
        }
        assert_eq!(Part::parse("shell"), None);
    }
}
