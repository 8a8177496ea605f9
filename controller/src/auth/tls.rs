//! TLS of the controller: its own certificate, renewed while it runs, and what both sides accept.
//!
//! - The listener shows the controller's certificate with the authority's behind it, and takes
//!   client certificates of our authority, or none: users have tokens, agents have certificates.
//! - Connections to agents go only to the host that is meant: its certificate must be of our
//!   authority, for `<host id>.host.kring`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ClientConfig, NamedGroup, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use shared::id::HostId;
use shared::time::Timestamp;
use shared::wire::{CONTROLLER_DNS_NAME, host_dns_name, host_of_dns_name};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::ca::{Ca, Error, Issued, read, read_issued, write};
use super::kx::X25519OfAwsLc;
use super::sessions::Sessions;
use crate::clock::Clock;
use crate::config::PkiConfig;

/// How often the certificate is looked at.
const LOOK: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The provider of all cryptography here: ring, with another key exchange of the same kind. Connections are short, so
/// most of what a cipher costs is hashing for its keys: the one with SHA-256, for which processors have
/// instructions, comes first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519);
    provider.kx_groups.insert(0, &X25519OfAwsLc);
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The authority and this controller's certificate.
#[derive(Debug)]
pub struct Pki {
    ca: Ca,
    dir: PathBuf,
    names: BTreeSet<String>,
    config: PkiConfig,
    clock: Clock,
    current: Arc<Current>,
}

/// The certificate of this moment; rustls asks for it at every handshake.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

impl Pki {
    /// Opens or makes authority and certificate in `dir`. `names` are further names and addresses of
    /// this controller.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(dir: PathBuf, names: &[String], config: PkiConfig, clock: Clock) -> Result<Self, Error> {
        let ca = Ca::open(&dir, clock.clone())?;
        let names = all_names(names);
        let kept = read(&dir.join("controller.pem"))
            .and_then(|chain| read_issued(&chain, &read(&dir.join("controller.key"))?));
        let issued = match kept {
            Ok(kept) if fits(&kept, &ca, &names, &clock) => kept,
            _ => issue(&ca, &dir, &names, config)?,
        };
        let current = Arc::new(Current(ArcSwap::from_pointee(certified(issued)?)));
        Ok(Self { ca, dir, names, config, clock, current })
    }

    /// The certificate authority.
    #[must_use]
    pub const fn ca(&self) -> &Ca {
        &self.ca
    }

    /// Signs a host's certificate with the configured life; see [`Ca::sign_host`].
    ///
    /// # Errors
    /// See [`Ca::sign_host`].
    pub fn sign_host(&self, csr_pem: &str, id: HostId) -> Result<String, Error> {
        self.ca.sign_host(csr_pem, id, DAY * self.config.host_days)
    }

    /// Replaces the certificate when less than a third of its life is left. Whether it did.
    ///
    /// # Errors
    /// See [`Error`]; the old certificate stays.
    pub fn renew_if_due(&self) -> Result<bool, Error> {
        let current = self.current.0.load();
        if current.cert.first().is_some_and(|cert| !is_due(cert, &self.clock)) {
            return Ok(false);
        }
        let issued = issue(&self.ca, &self.dir, &self.names, self.config)?;
        self.current.0.store(Arc::new(certified(issued)?));
        Ok(true)
    }

    /// Keeps the certificate fresh until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            match self.renew_if_due() {
                Ok(false) => {}
                Ok(true) => tracing::info!("the controller's certificate was renewed"),
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the controller's certificate could not be renewed; it is tried again"
                ),
            }
        }
    }

    /// TLS of the listener.
    ///
    /// # Errors
    /// When rustls does not accept the authority.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let failed = |e: rustls::Error| Error::certificate("the listener's TLS", e);
        let verifier = WebPkiClientVerifier::builder_with_provider(self.ca.roots()?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::certificate("the listener's TLS", e))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Sessions live in tickets that the clients keep: no memory here, whatever their number.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(failed)?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }

    /// TLS towards agents: [`agent_name`] is what to connect as. `sessions` hosts are remembered, so
    /// that the next connection needs no full handshake.
    ///
    /// # Errors
    /// When rustls does not accept the authority.
    pub fn agent_client_config(&self, sessions: usize) -> Result<Arc<ClientConfig>, Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Error::certificate("TLS to agents", e))?
            .with_root_certificates(self.ca.roots()?)
            .with_client_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesClientCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::store(Arc::new(Sessions::new(sessions)));
        Ok(Arc::new(config))
    }
}

/// The name that a host's certificate must be for.
///
/// # Errors
/// Never for a host id; rustls wants to be asked.
pub fn agent_name(id: HostId) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host_dns_name(id)).map_err(|e| Error::certificate("a host's name", e))
}

/// The host that a client certificate of our authority is for; `None` for another kind of certificate.
#[must_use]
pub fn peer_host(cert: &CertificateDer<'_>) -> Option<HostId> {
    let (_, parsed) = X509Certificate::from_der(cert.as_ref()).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => host_of_dns_name(name),
        _ => None,
    })
}

fn all_names(configured: &[String]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        [CONTROLLER_DNS_NAME, "localhost", "127.0.0.1", "::1"].into_iter().map(str::to_string).collect();
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let is_dns = |name: &str| ServerName::try_from(name).is_ok();
    names.extend(Some(host.to_ascii_lowercase()).filter(|name| is_dns(name)));
    names.extend(configured.iter().map(|name| name.to_ascii_lowercase()));
    names
}

fn issue(ca: &Ca, dir: &std::path::Path, names: &BTreeSet<String>, config: PkiConfig) -> Result<Issued, Error> {
    let names: Vec<String> = names.iter().cloned().collect();
    let issued = ca.issue_controller(&names, DAY * config.controller_days)?;
    // A crash between the two leaves a pair that does not fit, which is made anew at the next start.
    write(&dir.join("controller.key"), &issued.pem.1, 0o600)?;
    write(&dir.join("controller.pem"), &issued.pem.0, 0o644)?;
    Ok(issued)
}

fn certified(issued: Issued) -> Result<CertifiedKey, Error> {
    CertifiedKey::from_der(issued.chain, issued.key, &provider())
        .map_err(|e| Error::certificate("the controller's certificate", e))
}

/// Whether a kept certificate can go on: of this authority, with its key, for these names, not due.
fn fits(kept: &Issued, ca: &Ca, names: &BTreeSet<String>, clock: &Clock) -> bool {
    let Some(leaf) = kept.chain.first() else { return false };
    let ours = kept.pem.0.ends_with(ca.pem());
    let key = CertifiedKey::from_der(kept.chain.clone(), kept.key.clone_key(), &provider());
    ours && key.is_ok_and(|key| key.keys_match().is_ok())
        && names_of(leaf).as_ref() == Some(names)
        && !is_due(leaf, clock)
}

fn names_of(cert: &CertificateDer<'_>) -> Option<BTreeSet<String>> {
    let (_, parsed) = X509Certificate::from_der(cert.as_ref()).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    Some(names.value.general_names.iter().filter_map(name_of).collect())
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_string()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// When the first certificate in a file ends.
///
/// # Errors
/// When it cannot be read.
pub fn ends_at(path: &std::path::Path) -> Result<Timestamp, Error> {
    let bad = || Error::certificate(&path.display().to_string(), "it holds no certificate");
    let cert = CertificateDer::from_pem_slice(read(path)?.as_bytes()).map_err(|_| bad())?;
    let (_, parsed) = X509Certificate::from_der(cert.as_ref()).map_err(|_| bad())?;
    Ok(Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1000)))
}

/// Whether less than a third of a certificate's life is left, or it does not count yet.
fn is_due(cert: &CertificateDer<'_>, clock: &Clock) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(cert.as_ref()) else { return true };
    let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let now = clock.now().ms() / 1000;
    now < from || now >= until - (until - from) / 3
}

#[cfg(test)]
mod tests;
