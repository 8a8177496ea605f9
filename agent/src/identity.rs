//! Who this host is: its id, its key and certificates, the controllers it joined, as files below
//! `<data_dir>/identity`.
//!
//! The key is made on the host and never leaves it. `host-id` is written last at a join and marks
//! it as complete; `controllers` is what the join was given, `controllers.told` what controllers have
//! told since. A renewal writes `key.new.pem`, then replaces `cert.pem`, then `key.pem`: after a
//! crash in between, the key that fits the certificate is taken. What TLS accepts is in [`tls`].

pub mod join;
pub mod renew;
pub mod tls;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::id::HostId;
use shared::time::Timestamp;
use shared::wire::controllers;

/// What is wrong with an identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has not joined.
    #[error("this host has not joined a controller yet: run `kring-agent join --controller URL --token TOKEN`")]
    NotJoined,
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} {problem}: join again")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A key or certificate request could not be made.
    #[error("the key pair could not be made")]
    Key(#[from] rcgen::Error),
    /// The certificates cannot be used.
    #[error("the certificates cannot be used for TLS")]
    Tls(#[from] rustls::Error),
    /// The client could not be made.
    #[error("the HTTP client could not be made")]
    Client(#[from] reqwest::Error),
    /// The token is not one of Kring.
    #[error("the token is not complete: copy all of it, `<secret>.<fingerprint>`")]
    Token,
    /// The host belongs to another cloud than the token's.
    #[error(
        "this host has joined another cloud: run `kring-agent leave` first (its guests stay), or \
         `kring-agent purge --yes` (nothing stays)"
    )]
    OtherCloud,
    /// The controller refused.
    #[error("the controller refused: {}", .0.chain())]
    Refused(shared::Error),
    /// No controller answered.
    #[error("no controller answered")]
    Unreachable(#[source] Box<crate::controller::Error>),
    /// The controller's answer does not fit.
    #[error("the controller's answer is not acceptable: {0}")]
    Answer(String),
}

/// The identity as it is now, for everyone; swapped on renewal without a restart.
pub type Current = ArcSwap<Identity>;

/// A loaded identity and what TLS makes of it.
pub struct Identity {
    /// The host.
    pub host_id: HostId,
    /// Controllers that `join` was given.
    pub controllers: Vec<String>,
    /// For the streams of migrations to other hosts.
    pub to_hosts: Arc<rustls::ClientConfig>,
    /// For the agent's own listener: only controllers get in, and hosts that send a guest.
    pub server: Arc<rustls::ServerConfig>,
    /// For requests to controllers: only they are spoken to.
    pub client: reqwest::Client,
    /// From when the certificate is valid.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

/// The files of an identity.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What a join or a renewal brings.
pub(crate) struct Issued {
    pub key_pem: String,
    pub cert_pem: String,
    pub ca_pem: String,
}

impl Store {
    /// The files below a data folder.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("identity") }
    }

    /// The id of this host, or of its earlier life; `None` when it never joined.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn host_id(&self) -> Result<Option<HostId>, Error> {
        let path = self.path("host-id");
        match fs::read_to_string(&path) {
            Ok(text) => {
                text.trim().parse().map(Some).map_err(|_| Error::Content { path, problem: "is not a host id".into() })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Reads the identity and prepares TLS.
    ///
    /// # Errors
    /// `NotJoined`, or what is wrong with the files.
    pub fn load(&self, timeout: Duration) -> Result<Identity, Error> {
        let host_id = self.host_id()?.ok_or(Error::NotJoined)?;
        self.finish_renewal()?;
        let cert_path = self.path("cert.pem");
        let chain = certificates(&cert_path, &self.read("cert.pem")?)?;
        let ca = certificates(&self.path("ca.pem"), &self.read("ca.pem")?)?;
        let key = PrivateKeyDer::from_pem_slice(self.read("key.pem")?.as_bytes())
            .map_err(|e| Error::Content { path: self.path("key.pem"), problem: format!("holds no key ({e})") })?;
        let leaf = chain.first().ok_or(Error::Content { path: cert_path.clone(), problem: "is empty".into() })?;
        let (not_before, not_after) =
            tls::validity(leaf).ok_or(Error::Content { path: cert_path, problem: "holds no certificate".into() })?;
        let controllers = self.read("controllers")?.lines().map(str::to_string).filter(|l| !l.is_empty()).collect();
        let client = tls::controller_client(&ca, Some((chain.clone(), key.clone_key())), timeout)?;
        let to_hosts = Arc::new(tls::host_client(&ca, chain.clone(), key.clone_key())?);
        let server = Arc::new(tls::server_config(&ca, chain, key)?);
        Ok(Identity { host_id, controllers, to_hosts, server, client, not_before, not_after })
    }

    /// Whether the host is of a cloud whose authority has another fingerprint. One whose files are broken is of
    /// none: it has to join again.
    pub(crate) fn is_of_another(&self, ca: &tls::Fingerprint) -> bool {
        let known = self.ca_pem().and_then(|pem| certificates(&self.path("ca.pem"), &pem));
        matches!(self.host_id(), Ok(Some(_)))
            && known.is_ok_and(|all| all.iter().all(|cert| tls::fingerprint(cert) != *ca))
    }

    /// Writes what a join brought; the host id last.
    pub(crate) fn save_join(&self, id: HostId, controllers: &[String], issued: &Issued) -> Result<(), Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| Error::File { path: self.dir.clone(), source })?;
        self.write("key.pem", &issued.key_pem, 0o600)?;
        self.write("ca.pem", &issued.ca_pem, 0o644)?;
        self.write("controllers", &format!("{}\n", controllers.join("\n")), 0o644)?;
        self.write("cert.pem", &issued.cert_pem, 0o644)?;
        self.write("host-id", &format!("{id}\n"), 0o644)
    }

    /// Replaces key and certificate so that a crash at any point leaves a pair that fits.
    pub(crate) fn save_renewal(&self, issued: &Issued) -> Result<(), Error> {
        self.write("key.new.pem", &issued.key_pem, 0o600)?;
        self.write("ca.pem", &issued.ca_pem, 0o644)?;
        self.write("cert.pem", &issued.cert_pem, 0o644)?;
        self.finish_renewal()
    }

    /// Removes the identity; a success when there is none.
    ///
    /// # Errors
    /// When the files are there and stay.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// The addresses that controllers told last; none when they never did.
    pub(crate) fn told_controllers(&self) -> Result<Vec<String>, Error> {
        let path = self.path("controllers.told");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(controllers::clean(text.lines())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Keeps the addresses that controllers told.
    pub(crate) fn save_told_controllers(&self, urls: &[String]) -> Result<(), Error> {
        self.write("controllers.told", &format!("{}\n", urls.join("\n")), 0o644)
    }

    /// The certificate authorities of the controllers, PEM.
    pub(crate) fn ca_pem(&self) -> Result<String, Error> {
        self.read("ca.pem")
    }

    fn finish_renewal(&self) -> Result<(), Error> {
        let Ok(new) = fs::read_to_string(self.path("key.new.pem")) else { return Ok(()) };
        let path = self.path("cert.pem");
        let chain = certificates(&path, &self.read("cert.pem")?)?;
        let fits = chain.first().is_some_and(|leaf| tls::key_fits(&new, leaf));
        let (from, to) = (self.path("key.new.pem"), self.path("key.pem"));
        let done = if fits { fs::rename(&from, &to) } else { fs::remove_file(&from) };
        done.map_err(|source| Error::File { path: from, source })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> Result<String, Error> {
        let path = self.path(name);
        fs::read_to_string(&path).map_err(|source| Error::File { path, source })
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), Error> {
        let path = self.path(name);
        replace_file(&path, text.as_bytes(), mode).map_err(|source| Error::File { path, source })
    }
}

/// Writes a file so that a reader, or a crash, sees the old or the new content and never a part.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".tmp");
    let temp = PathBuf::from(temp);
    let _ = fs::remove_file(&temp);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

fn certificates(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err(Error::Content { path: path.to_owned(), problem: "holds no certificate".into() }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use shared::wire::{CONTROLLER_DNS_NAME, host_dns_name};

    /// A certificate authority and what it issues, as a controller would.
    pub(crate) struct TestCa {
        pub pem: String,
        pub der: CertificateDer<'static>,
        pub issuer: Issuer<'static, KeyPair>,
        key_pem: String,
    }

    impl TestCa {
        pub(crate) fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let cert = params.self_signed(&key).unwrap();
            let key_pem = key.serialize_pem();
            Self { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key), key_pem }
        }

        /// The same authority once more, for a closure to own.
        pub(crate) fn issuer_copy(&self) -> Self {
            let key = KeyPair::from_pem(&self.key_pem).unwrap();
            let issuer = Issuer::from_ca_cert_der(&self.der, key).unwrap();
            Self { pem: self.pem.clone(), der: self.der.clone(), issuer, key_pem: self.key_pem.clone() }
        }

        /// Certificate and key, PEM, for a DNS name.
        pub(crate) fn issue(&self, name: &str) -> (String, String) {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_string()]).unwrap();
            (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
        }

        pub(crate) fn chain(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
            let (cert, key) = self.issue(name);
            let leaf = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            (vec![leaf, self.der.clone()], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        }

        pub(crate) fn controller_chain(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
            self.chain(CONTROLLER_DNS_NAME)
        }

        /// An identity in `dir`, as after a join.
        pub(crate) fn join(&self, dir: &Path, host_id: HostId, controller: &str) -> Identity {
            let (cert_pem, key_pem) = self.issue(&host_dns_name(host_id));
            let store = Store::new(dir);
            let issued = Issued { key_pem, cert_pem, ca_pem: self.pem.clone() };
            store.save_join(host_id, &[controller.to_string()], &issued).unwrap();
            store.load(Duration::from_secs(5)).unwrap()
        }
    }

    #[test]
    fn an_identity_is_read_back_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert!(matches!(store.load(Duration::from_secs(1)), Err(Error::NotJoined)));
        let id = HostId::new();
        let identity = TestCa::new().join(dir.path(), id, "https://127.0.0.1:1");
        assert_eq!((identity.host_id, identity.controllers.len()), (id, 1));
        assert!(identity.not_before < identity.not_after);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(dir.path().join("identity/key.pem")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        store.remove().unwrap();
        store.remove().unwrap();
        assert_eq!(store.host_id().unwrap(), None);
    }

    #[test]
    fn a_renewal_that_crashed_half_way_leaves_a_pair_that_fits() {
        let dir = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        let id = HostId::new();
        ca.join(dir.path(), id, "https://127.0.0.1:1");
        let store = Store::new(dir.path());
        let (cert_pem, key_pem) = ca.issue(&host_dns_name(id));
        // Crash after the new key: the old certificate stays, and the old key with it.
        store.write("key.new.pem", &key_pem, 0o600).unwrap();
        store.load(Duration::from_secs(1)).unwrap();
        assert!(!store.path("key.new.pem").exists());
        // Crash after the certificate: the new key takes its place.
        store.write("key.new.pem", &key_pem, 0o600).unwrap();
        store.write("cert.pem", &cert_pem, 0o644).unwrap();
        store.load(Duration::from_secs(1)).unwrap();
        assert_eq!(store.read("key.pem").unwrap(), key_pem);
    }
}
