//! What TLS the simulated hosts speak: one server configuration for all of them, which picks the
//! certificate by the name that the controller asks for, and clients that trust only controllers.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, anyhow};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use shared::id::HostId;
use shared::wire::{CONTROLLER_DNS_NAME, host_dns_name};

/// SHA-256 of a certificate's DER, as a join token carries it.
pub type Fingerprint = [u8; 32];

/// The provider of all cryptography here.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Makes ring the provider of everything in this process that does not name one. May be called twice.
pub fn install_provider() {
    // The second call fails, and says nothing but that the first one did its work.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The fingerprint in a token `<secret>.<hex>`.
///
/// # Errors
/// When the token is not of this form.
pub fn fingerprint_of_token(token: &str) -> anyhow::Result<Fingerprint> {
    let bad = || anyhow!("the token is not of the form <secret>.<fingerprint>");
    let (_, hex) = token.trim().rsplit_once('.').ok_or_else(bad)?;
    anyhow::ensure!(hex.len() == 64 && hex.is_ascii(), bad());
    let mut bytes = [0; 32];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).map_err(|_| bad())?;
    }
    Ok(bytes)
}

/// A private key and a certificate request for it, both PEM.
///
/// # Errors
/// When the key cannot be made.
pub fn key_and_request() -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// A certificate of a host with its key, as the controller signed it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The host.
    pub host_id: HostId,
    /// The certificate authority, PEM.
    pub ca: Arc<str>,
    certified: Arc<CertifiedKey>,
}

impl Identity {
    /// Reads what a join answered.
    ///
    /// # Errors
    /// When certificate and key do not fit each other, or the certificate is for another host.
    pub fn new(host_id: HostId, certificate: &str, ca: Arc<str>, key: &str) -> anyhow::Result<Self> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
        let leaf = chain.first().context("the answer has no certificate")?;
        let name = ServerName::try_from(host_dns_name(host_id))?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, &name)
            .with_context(|| format!("the certificate is not for host {host_id}"))?;
        let private = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let certified = Arc::new(CertifiedKey::from_der(chain, private, &provider())?);
        Ok(Self { host_id, ca, certified })
    }

    /// The certificate and those that it is signed by.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }
}

/// Certificates by the name in them.
#[derive(Debug, Default)]
pub struct Names(RwLock<HashMap<String, Arc<CertifiedKey>>>);

impl Names {
    /// Answers for a host from now on.
    pub fn set(&self, identity: &Identity) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        names.insert(host_dns_name(identity.host_id), Arc::clone(&identity.certified));
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.get(hello.server_name()?).cloned()
    }
}

/// The listener's side for all hosts of one certificate authority.
///
/// # Errors
/// When the authority cannot be read.
pub fn server_config(ca: &str, names: Arc<Names>) -> anyhow::Result<Arc<ServerConfig>> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(OnlyControllers(inner)))
        .with_cert_resolver(names);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each real host remembers its own few sessions; one memory for all of them would forget most.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// A client that trusts the controllers of `ca` and has no certificate of its own.
///
/// # Errors
/// When the authority cannot be read.
pub fn client_config(ca: &str) -> anyhow::Result<ClientConfig> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider()).build()?;
    without_certificate(Trust::Authority(inner))
}

/// A client for a join: it trusts the controller whose authority has this fingerprint.
///
/// # Errors
/// When the client cannot be made.
pub fn join_config(ca: Fingerprint) -> anyhow::Result<ClientConfig> {
    without_certificate(Trust::Pinned(ca))
}

/// The same client with a host's certificate. Cheap: everything but the certificate is shared.
#[must_use]
pub fn with_identity(base: &ClientConfig, identity: &Identity) -> Arc<ClientConfig> {
    let mut config = base.clone();
    config.client_auth_cert_resolver = Arc::new(OneCertificate(Arc::clone(&identity.certified)));
    Arc::new(config)
}

fn without_certificate(trust: Trust) -> anyhow::Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OnlyController { trust, provider: provider() }))
        .with_no_client_auth();
    // A resumed session would carry the certificate of whichever host opened it.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(ca: &str) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(roots))
}

fn controller_name() -> Result<ServerName<'static>, Error> {
    ServerName::try_from(CONTROLLER_DNS_NAME).map_err(|e| Error::General(e.to_string()))
}

#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[derive(Debug)]
enum Trust {
    /// Signed by this authority.
    Authority(Arc<WebPkiServerVerifier>),
    /// Signed by the authority with this fingerprint, which comes along in the chain.
    Pinned(Fingerprint),
}

/// Accepts a server with a controller's certificate, at whatever address.
#[derive(Debug)]
struct OnlyController {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnlyController {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = controller_name()?;
        match &self.trust {
            Trust::Authority(inner) => inner.verify_server_cert(leaf, chain, &name, ocsp, now),
            Trust::Pinned(fingerprint) => {
                let ca = chain.iter().find(|cert| Sha256::digest(cert.as_ref()).as_slice() == fingerprint);
                let ca = ca.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|e| Error::General(e.to_string()))?;
                inner.verify_server_cert(leaf, chain, &name, ocsp, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Lets in clients with a controller's certificate.
#[derive(Debug)]
struct OnlyControllers(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for OnlyControllers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_server_name(&ParsedCertificate::try_from(leaf)?, &controller_name()?)?;
        self.0.verify_client_cert(leaf, chain, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
