//! TLS towards a controller: which certificates are believed.
//!
//! A controller's certificate is signed by Kring's own authority. It is believed for the name in the
//! URL, or, so that any address, tunnel or name works, for the name that every controller has.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::error::{CliError, Result};

/// The name in every controller's certificate.
pub const CONTROLLER_NAME: &str = "controller.kring";

/// The provider of all cryptography here.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn bad(why: impl ToString) -> CliError {
    CliError::Config {
        message: format!("the certificate authority cannot be used: {}", why.to_string()),
        hint: "give the controller's ca.pem with --ca".into(),
    }
}

/// Believes no certificate at all; for connections without TLS.
pub fn nobody() -> Result<ClientConfig> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(bad)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// Believes the certificates of this authority alone.
pub fn config(ca_pem: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let der = der.map_err(bad)?;
        roots.add(der).map_err(bad)?;
    }
    if roots.is_empty() {
        return Err(bad("there is no certificate in it"));
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(bad)?;
    let name = ServerName::try_from(CONTROLLER_NAME).map_err(bad)?;
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(KringVerifier { inner, name }))
        .with_no_client_auth())
}

#[derive(Debug)]
struct KringVerifier {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for KringVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let check = |name: &ServerName<'_>| self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match check(server_name) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => check(&self.name),
            other => other,
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
