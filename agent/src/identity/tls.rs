//! What TLS accepts. There is one TLS stack, rustls with the ring provider.
//!
//! - The agent's listener lets in only clients whose certificate the controllers' authority signed
//!   **for the name of a controller**, or for that of a host: what a host may ask for, and when, is decided
//!   right after (`http/`).
//! - Requests go only to servers with such a certificate, whatever address they are reached at.
//! - At a join there is no authority yet: the token carries the fingerprint of its certificate, and
//!   the server must present exactly that one above its own.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use sha2::{Digest, Sha256};
use shared::id::HostId;
use shared::time::Timestamp;
use shared::wire::{CONTROLLER_DNS_NAME, host_dns_name, host_of_dns_name};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How long a connection to a controller stays open for the next request.
const KEEP: Duration = Duration::from_secs(1);

/// SHA-256 of a certificate's DER.
pub type Fingerprint = [u8; 32];

/// The provider of all cryptography here. Connections are short, so most of what a cipher costs is hashing for
/// its keys: the one with SHA-256, for which processors have instructions, comes first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// Makes ring the provider of everything in this process that does not name one. May be called twice.
pub fn install_provider() {
    // The second call fails, and says nothing but that the first one did its work.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The fingerprint of a certificate.
#[must_use]
pub fn fingerprint(cert: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(cert.as_ref()).into()
}

/// When a certificate begins and ends to be valid; `None` when it is no certificate.
#[must_use]
pub fn validity(cert: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (_, parsed) = X509Certificate::from_der(cert.as_ref()).ok()?;
    let at = |t: x509_parser::time::ASN1Time| Timestamp(t.timestamp().saturating_mul(1000));
    Some((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

/// Whether a private key (PEM) belongs to a certificate.
#[must_use]
pub fn key_fits(key_pem: &str, cert: &CertificateDer<'_>) -> bool {
    let (Ok(key), Ok((_, parsed))) = (rcgen::KeyPair::from_pem(key_pem), X509Certificate::from_der(cert.as_ref()))
    else {
        return false;
    };
    rcgen::PublicKeyData::der_bytes(&key) == parsed.public_key().subject_public_key.data.as_ref()
}

/// Whether a certificate is for a DNS name.
#[must_use]
pub fn is_for(cert: &CertificateDer<'_>, name: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(cert), ServerName::try_from(name)) else {
        return false;
    };
    verify_server_name(&parsed, &name).is_ok()
}

/// Who is at the other end of a connection, by its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A controller.
    Controller,
    /// Another host.
    Host(HostId),
}

/// Whom a certificate is for; `None` when it is for nobody that is let in.
#[must_use]
pub fn peer(cert: &CertificateDer<'_>) -> Option<Peer> {
    if is_for(cert, CONTROLLER_DNS_NAME) {
        return Some(Peer::Controller);
    }
    let (_, parsed) = X509Certificate::from_der(cert.as_ref()).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let id = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => host_of_dns_name(name),
        _ => None,
    })?;
    is_for(cert, &host_dns_name(id)).then_some(Peer::Host(id))
}

/// A client that speaks to other hosts of `ca`, each by its name.
///
/// # Errors
/// When the certificates do not fit each other.
pub fn host_client(
    ca: &[CertificateDer<'static>],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain, key)
}

/// The configuration of the agent's listener.
///
/// # Errors
/// When the certificates do not fit each other.
pub fn server_config(
    ca: &[CertificateDer<'static>],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, Error> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider())
        .build()
        .map_err(|e| Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(OnlyKnown { inner }))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A client that speaks only to controllers of `ca`, with a certificate of its own when there is one.
///
/// # Errors
/// When the certificates do not fit each other.
pub fn controller_client(
    ca: &[CertificateDer<'static>],
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    timeout: Duration,
) -> Result<reqwest::Client, super::Error> {
    let inner = verifier(roots(ca)?)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AsController { inner }));
    let config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    client(config, timeout)
}

/// A client for the join: it accepts a controller whose authority has this fingerprint.
///
/// # Errors
/// When the client cannot be made.
pub fn join_client(ca: Fingerprint, timeout: Duration) -> Result<reqwest::Client, super::Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { ca, provider: provider() }))
        .with_no_client_auth();
    client(config, timeout)
}

fn client(config: ClientConfig, timeout: Duration) -> Result<reqwest::Client, super::Error> {
    install_provider();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout.min(Duration::from_secs(5)))
        .read_timeout(timeout)
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(KEEP)
        .user_agent(concat!("kring-agent/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

fn roots(ca: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    ca.iter().try_for_each(|cert| roots.add(cert.clone()))?;
    Ok(Arc::new(roots))
}

fn verifier(roots: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(|e| Error::General(e.to_string()))
}

fn controller_name() -> Result<ServerName<'static>, Error> {
    ServerName::try_from(CONTROLLER_DNS_NAME).map_err(|e| Error::General(e.to_string()))
}

/// Verifies a server for the name of a controller instead of the address it was reached at.
#[derive(Debug)]
struct AsController {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AsController {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &controller_name()?, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Verifies a server as [`AsController`] does, by the authority with this fingerprint, which the
/// server must send along.
#[derive(Debug)]
struct Pinned {
    ca: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|cert| fingerprint(cert) == self.ca)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let inner = verifier(roots(&[ca.clone().into_owned()])?)?;
        inner.verify_server_cert(end_entity, intermediates, &controller_name()?, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Lets in clients with a controller's or a host's certificate, and nobody without a certificate.
#[derive(Debug)]
struct OnlyKnown {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for OnlyKnown {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        match peer(end_entity) {
            Some(Peer::Controller | Peer::Host(_)) => Ok(verified),
            None => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::TestCa;

    fn verify(verifier: &dyn ServerCertVerifier, chain: &[CertificateDer<'static>]) -> Result<(), Error> {
        let name = ServerName::try_from("10.1.2.3").unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn a_join_accepts_exactly_the_controller_of_the_pinned_authority() {
        let (ours, theirs) = (TestCa::new(), TestCa::new());
        let pinned = Pinned { ca: fingerprint(&ours.der), provider: provider() };
        let (chain, _) = ours.controller_chain();
        verify(&pinned, &chain).unwrap();
        assert!(verify(&pinned, &chain[..1]).is_err(), "the authority must be sent along");
        assert!(verify(&pinned, &theirs.controller_chain().0).is_err(), "another authority");
        let mut mixed = theirs.controller_chain().0;
        mixed.push(ours.der.clone());
        assert!(verify(&pinned, &mixed).is_err(), "our authority beside another one's certificate");
        let host = ours.chain(&host_dns_name(HostId::new())).0;
        assert!(verify(&pinned, &host).is_err(), "a host is not a controller");
        assert!(verify(&pinned, &[ours.der.clone(), ours.der.clone()]).is_err(), "the authority itself");
    }

    #[test]
    fn a_join_with_a_wrong_clock_says_that_it_is_the_clock() {
        let ca = TestCa::new();
        let (chain, name) = (ca.controller_chain().0, ServerName::try_from("10.1.2.3").unwrap());
        let pinned = Pinned { ca: fingerprint(&ca.der), provider: provider() };
        // Before and after the certificates' time, in years: they are good from 1975 to 4096.
        for years in [0, 3000] {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(years * 366 * 24 * 3600));
            let refused = pinned.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).unwrap_err();
            let advice = crate::check::advice(&refused.to_string(), false);
            assert!(advice.contains("set the clock"), "{refused}: {advice}");
        }
    }

    #[test]
    fn the_listener_knows_controllers_from_hosts_and_lets_in_nobody_else() {
        let (ours, theirs) = (TestCa::new(), TestCa::new());
        let roots = roots(std::slice::from_ref(&ours.der)).unwrap();
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().unwrap();
        let verifier = OnlyKnown { inner };
        let check = |chain: &[CertificateDer<'static>]| {
            verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).is_ok()
        };
        assert!(check(&ours.controller_chain().0));
        let id = HostId::new();
        let host = ours.chain(&host_dns_name(id)).0;
        assert!(check(&host));
        assert_eq!(
            (peer(&host[0]), peer(&ours.controller_chain().0[0])),
            (Some(Peer::Host(id)), Some(Peer::Controller))
        );
        for stranger in ["host.kring", "x.host.kring", "kring", "example.org"] {
            let chain = ours.chain(stranger).0;
            assert!(!check(&chain) && peer(&chain[0]).is_none(), "{stranger}");
        }
        assert!(!check(&theirs.controller_chain().0));
        assert!(verifier.client_auth_mandatory());
    }

    #[test]
    fn a_key_is_told_from_another() {
        use rustls::pki_types::pem::PemObject;
        let ca = TestCa::new();
        let (cert, key) = ca.issue("a.host.kring");
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        assert!(key_fits(&key, &cert) && !key_fits(&ca.issue("b.host.kring").1, &cert));
        assert!(is_for(&cert, "a.host.kring") && !is_for(&cert, "b.host.kring"));
    }
}
