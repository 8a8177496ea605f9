//! Joining a controller with a one-time token, and asking for certificates.
//!
//! A token is `<secret>.<hex SHA-256 of the authority's certificate>`: the fingerprint is checked by
//! TLS before the secret is sent, so it never reaches a server that is not the operator's.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shared::id::HostId;
use shared::name::Name;
use shared::wire::host::{HostFacts, Join, Joined};
use shared::wire::{controllers, host_dns_name};

use super::tls::{self, Fingerprint};
use super::{Error, Issued, Store};
use crate::controller;

/// What the operator says at a join.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// Addresses of controllers, tried in turn.
    pub controllers: Vec<String>,
    /// The one-time token.
    pub token: String,
    /// Name of the host.
    pub name: Name,
    /// Address that controllers reach the agent at; the one that the request comes from when absent.
    pub address: Option<IpAddr>,
    /// Port that the agent listens on.
    pub port: u16,
    /// How long one controller may take to answer.
    pub timeout: Duration,
}

/// Joins: makes a key, has it certified, keeps both. A host that had joined before keeps its id; one that is of
/// another cloud stays there, because its guests are.
///
/// # Errors
/// When no controller answers, the controller refuses, its answer does not fit, or the host is of another cloud.
pub async fn join(store: &Store, options: JoinOptions, facts: HostFacts) -> Result<HostId, Error> {
    let ca = pinned(&options.token)?;
    if store.is_of_another(&ca) {
        return Err(Error::OtherCloud);
    }
    let client = tls::join_client(ca, options.timeout)?;
    let (key_pem, csr) = request()?;
    let body = Join {
        token: options.token.clone(),
        name: options.name.clone(),
        csr,
        port: options.port,
        address: options.address.map(|a| a.to_string()),
        host_id: store.host_id()?,
        facts,
    };
    let joined: Joined =
        controller::post_in_turn(&client, &options.controllers, "/agent/v1/join", &body).await.map_err(refused)?;
    let issued = accept(&joined, key_pem, &joined.ca, joined.host_id)?;
    let authority = certificate(&joined.ca)?;
    if tls::fingerprint(&authority) != ca {
        return Err(Error::Answer("its certificate authority is not the one of the token".into()));
    }
    store.save_join(joined.host_id, &options.controllers, &issued)?;
    // What an earlier life was told is of other controllers, perhaps.
    store.save_told_controllers(&controllers::clean(joined.controllers.iter().map(String::as_str)))?;
    Ok(joined.host_id)
}

/// A new key pair (ECDSA P-256) and a certificate request for it, both PEM. The controller takes
/// only the public key from the request: names in it would count for nothing.
pub(super) fn request() -> Result<(String, String), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let csr = CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), csr))
}

/// Checks an answer before anything of it is kept: the certificate must be ours.
pub(super) fn accept(joined: &Joined, key_pem: String, ca_pem: &str, host_id: HostId) -> Result<Issued, Error> {
    let leaf = certificate(&joined.certificate)?;
    if joined.host_id != host_id || !tls::is_for(&leaf, &host_dns_name(host_id)) {
        return Err(Error::Answer("the certificate is for another host".into()));
    }
    if !tls::key_fits(&key_pem, &leaf) {
        return Err(Error::Answer("the certificate is for another key".into()));
    }
    Ok(Issued { key_pem, cert_pem: joined.certificate.clone(), ca_pem: ca_pem.to_string() })
}

pub(super) fn refused(error: controller::Error) -> Error {
    match error {
        controller::Error::Refused(error) => Error::Refused(error),
        other => Error::Unreachable(Box::new(other)),
    }
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| Error::Answer("a certificate in it cannot be read".into()))
}

/// The fingerprint in a token.
fn pinned(token: &str) -> Result<Fingerprint, Error> {
    let (secret, hex) = token.trim().rsplit_once('.').ok_or(Error::Token)?;
    if secret.is_empty() || hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::Token);
    }
    let mut bytes = [0; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| Error::Token)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::TestCa;

    #[test]
    fn a_token_names_the_authority() {
        let hex = "0123456789abcdef".repeat(4);
        let bytes = pinned(&format!("a.secret.{hex}\n")).unwrap();
        assert_eq!(bytes[..3], [0x01, 0x23, 0x45]);
        for bad in ["", "secret", ".", &format!(".{hex}"), &format!("s.{}", &hex[1..]), &format!("s.z{}", &hex[1..])] {
            assert!(matches!(pinned(bad), Err(Error::Token)), "{bad}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_ours_is_not_kept() {
        let ca = TestCa::new();
        let (id, other) = (HostId::new(), HostId::new());
        let (certificate, key) = ca.issue(&host_dns_name(id));
        let joined = Joined { host_id: id, certificate, ca: ca.pem.clone(), controllers: Vec::new() };
        assert!(accept(&joined, key.clone(), &ca.pem, id).is_ok());
        assert!(accept(&joined, request().unwrap().0, &ca.pem, id).is_err(), "another key");
        assert!(accept(&joined, key.clone(), &ca.pem, other).is_err(), "another host");
        let lying = Joined { host_id: other, ..joined };
        assert!(accept(&lying, key, &ca.pem, other).is_err(), "a name that is not in the certificate");
    }
}
