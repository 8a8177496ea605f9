//! The certificate authority of this Kring: it signs the certificates of hosts and controllers.
//!
//! Its files are `ca.pem` and `ca.key` (ECDSA P-256, PKCS#8) in the data folder's `pki`; they are
//! made at the first start, and every controller of one Kring has the same two. Of a host's request
//! only the public key is taken: the name in the certificate is decided here.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use shared::Code;
use shared::id::HostId;
use shared::time::Timestamp;
use shared::wire::{CONTROLLER_DNS_NAME, host_dns_name};

use super::token::hex;
use crate::clock::Clock;

/// Life of the authority itself.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Clocks of hosts may be a little behind when a certificate is fresh.
const BACKDATED: Duration = Duration::from_secs(300);
/// Largest certificate request that is looked at; an ordinary one is under 2 KiB.
const MAX_CSR: usize = 16 * 1024;

/// What goes wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path} cannot be {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// One of the two files of the authority is there without the other.
    #[error(
        "{0} is missing beside its counterpart: put it back, or remove both to begin anew (every host must then join again)"
    )]
    Half(PathBuf),
    /// The data folder belongs to another cloud than the database.
    #[error(
        "{0} is the authority of another Kring than the database's: give this controller an empty data_dir, or its own database"
    )]
    Foreign(PathBuf),
    /// A certificate or key does not say what it must.
    #[error("{what} cannot be used")]
    Certificate {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A certificate request is not acceptable.
    #[error("the certificate request is not acceptable: {0}")]
    Request(String),
}

impl Error {
    pub(super) fn certificate(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Certificate { what: what.to_string(), source: source.into() }
    }
}

impl From<Error> for shared::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Request(why) => {
                Self::new(Code::InvalidRequest, format!("the certificate request is not acceptable: {why}"))
            }
            other => Self::internal(&other).caused_by(&other),
        }
    }
}

/// A certificate with its key and the chain that is sent along.
pub struct Issued {
    /// The certificate and then the authority's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// Certificate, authority and key in PEM, as they are kept.
    pub(super) pem: (String, String),
}

/// An authority as it is kept, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    /// Its certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
}

/// The certificate authority.
pub struct Ca {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    clock: Clock,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl Ca {
    /// Reads the authority in `dir`, or makes it when there is none.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, Error> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        match (cert_path.exists(), key_path.exists()) {
            (true, true) => {}
            // The key is written first and the certificate last: a key alone is a first start that
            // was interrupted, and nothing was signed with it.
            (false, _) => make(&cert_path, &key_path, &clock)?,
            (true, false) => return Err(Error::Half(key_path)),
        }
        let (pem, key_pem) = (read(&cert_path)?, read(&key_path)?);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::certificate("ca.pem", e))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| Error::certificate("ca.key", e))?;
        if !belongs(&key, &der) {
            return Err(Error::certificate("ca.key", "it is the key of another certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| Error::certificate("ca.pem", e))?;
        Ok(Self { pem, der, issuer, clock })
    }

    /// The authority in `dir`, made when there is none, to be kept elsewhere as well.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn files(dir: &Path, clock: &Clock) -> Result<Files, Error> {
        Self::open(dir, clock.clone())?;
        Ok(Files { cert_pem: read(&dir.join("ca.pem"))?, key_pem: read(&dir.join("ca.key"))? })
    }

    /// Puts an authority that was made elsewhere into `dir`, where nothing was signed by another one.
    ///
    /// # Errors
    /// `Foreign` when something was, and see [`Error`].
    pub fn adopt(dir: &Path, files: &Files) -> Result<(), Error> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        if cert_path.exists() && read(&cert_path)? == files.cert_pem {
            return Ok(());
        }
        if cert_path.exists() && dir.join("controller.pem").exists() {
            return Err(Error::Foreign(cert_path));
        }
        write(&key_path, &files.key_pem, 0o600)?;
        write(&cert_path, &files.cert_pem, 0o644)
    }

    /// The authority's certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Hexadecimal SHA-256 of the authority's certificate (DER), as join tokens carry it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(self.der.as_ref()))
    }

    /// The authority as the only root of trust.
    ///
    /// # Errors
    /// When rustls does not accept the certificate.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).map_err(|e| Error::certificate("ca.pem", e))?;
        Ok(Arc::new(roots))
    }

    /// Signs a host's certificate for the public key of a request (PEM); answers the certificate in PEM.
    ///
    /// # Errors
    /// `Request` when the request is malformed, not signed by its key, or of another kind of key.
    pub fn sign_host(&self, csr_pem: &str, id: HostId, life: Duration) -> Result<String, Error> {
        if csr_pem.len() > MAX_CSR {
            return Err(Error::Request(format!("it is larger than {MAX_CSR} bytes")));
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| Error::Request(e.to_string()))?;
        let algorithm = PublicKeyData::algorithm(&request.public_key);
        if *algorithm != PKCS_ECDSA_P256_SHA256 {
            return Err(Error::Request("its key must be ECDSA on P-256".into()));
        }
        let params = self.leaf(&host_dns_name(id), vec![host_dns_name(id)], &[], life)?;
        let signed = params.signed_by(&request.public_key, &self.issuer);
        Ok(signed.map_err(|e| Error::certificate("a host's certificate", e))?.pem())
    }

    /// Makes a key and a certificate for a controller.
    pub(super) fn issue_controller(&self, names: &[String], life: Duration) -> Result<Issued, Error> {
        let failed = |e| Error::certificate("the controller's certificate", e);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let addresses: Vec<IpAddr> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let dns = names.iter().filter(|name| name.parse::<IpAddr>().is_err()).cloned().collect();
        let params = self.leaf(CONTROLLER_DNS_NAME, dns, &addresses, life)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let pem = format!("{}{}", certificate.pem(), self.pem);
        read_issued(&pem, &key.serialize_pem())
    }

    fn leaf(&self, name: &str, dns: Vec<String>, ips: &[IpAddr], life: Duration) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::new(dns).map_err(|e| Error::certificate(name, e))?;
        params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_times(&mut params, self.clock.now(), life);
        Ok(params)
    }
}

/// Makes key and certificate of a new authority; each file appears whole or not at all.
fn make(cert_path: &Path, key_path: &Path, clock: &Clock) -> Result<(), Error> {
    let failed = |e| Error::certificate("the new certificate authority", e);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "Kring certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_times(&mut params, clock.now(), CA_LIFE);
    let certificate = params.self_signed(&key).map_err(failed)?;
    write(key_path, &key.serialize_pem(), 0o600)?;
    write(cert_path, &certificate.pem(), 0o644)
}

fn set_times(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(u64::try_from(now.ms()).unwrap_or(0));
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + life;
    let mut serial: [u8; 16] = rand::random();
    // Positive and never zero, as RFC 5280 asks.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

/// Whether a key is the one in a certificate.
fn belongs(key: &KeyPair, cert: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(cert.as_ref())
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data.as_ref() == key.der_bytes())
}

/// A chain and its key from PEM.
pub(super) fn read_issued(chain_pem: &str, key_pem: &str) -> Result<Issued, Error> {
    let bad = |e| Error::certificate("the controller's certificate", e);
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(bad)?;
    Ok(Issued { chain, key, pem: (chain_pem.to_string(), key_pem.to_string()) })
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), what: "read", source })
}

/// Writes a file so that it is there whole, durably, or not at all.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let attempt = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir)?;
        let part = path.with_extension("part");
        // Another mode of an older file must not stay.
        let _ = std::fs::remove_file(&part);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    attempt().map_err(|source| Error::File { path: path.to_owned(), what: "written", source })
}
