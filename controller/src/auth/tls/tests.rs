//! Certificates on real handshakes: who is believed, what is kept, what is made anew.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

fn open(dir: &Path, names: &[&str], clock: &Clock) -> Pki {
    let names: Vec<String> = names.iter().map(|name| (*name).to_string()).collect();
    Pki::open(dir.to_owned(), &names, PkiConfig::default(), clock.clone()).unwrap()
}

fn request() -> (KeyPair, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    // The name in a request counts for nothing.
    let csr = CertificateParams::new(vec!["controller.kring".to_string()]).unwrap();
    let pem = csr.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

fn leaf(pki: &Pki) -> Vec<u8> {
    pki.current.0.load().cert[0].to_vec()
}

#[test]
fn authority_and_certificate_are_kept_and_the_keys_are_secret() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    let first = open(dir.path(), &["c1.example"], &clock);
    let second = open(dir.path(), &["c1.example"], &clock);
    assert_eq!((first.ca.fingerprint(), leaf(&first)), (second.ca.fingerprint(), leaf(&second)));
    for key in ["ca.key", "controller.key"] {
        assert_eq!(std::fs::metadata(dir.path().join(key)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let names = names_of(&first.current.0.load().cert[0]).unwrap();
    for name in ["controller.kring", "localhost", "127.0.0.1", "c1.example"] {
        assert!(names.contains(name), "{names:?}");
    }
}

#[test]
fn another_name_or_a_near_end_makes_a_new_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    let first = open(dir.path(), &[], &clock);
    let named = open(dir.path(), &["10.9.8.7"], &clock);
    assert_ne!(leaf(&first), leaf(&named));
    assert!(!named.renew_if_due().unwrap());
    clock.step(61 * 86_400_000);
    let before = leaf(&named);
    assert!(named.renew_if_due().unwrap());
    assert!(leaf(&named) != before && !named.renew_if_due().unwrap());
}

#[test]
fn a_half_authority_is_not_overwritten_and_a_broken_certificate_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    let first = open(dir.path(), &[], &clock).ca.fingerprint();
    std::fs::write(dir.path().join("controller.pem"), "nonsense").unwrap();
    assert_eq!(open(dir.path(), &[], &clock).ca.fingerprint(), first);
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    let error = Pki::open(dir.path().to_owned(), &[], PkiConfig::default(), clock.clone()).unwrap_err();
    assert!(matches!(error, Error::Half(_)), "{error}");
    // Only a key: the first start was interrupted.
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("ca.key"), "half").unwrap();
    open(other.path(), &[], &clock);
}

#[test]
fn a_host_gets_a_certificate_for_its_own_id_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &[], &Clock::default());
    let id = HostId::new();
    let pem = pki.sign_host(&request().1, id).unwrap();
    let cert = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    assert_eq!((peer_host(&cert), names_of(&cert).unwrap().len()), (Some(id), 1));
    assert_eq!(peer_host(&pki.current.0.load().cert[0]), None);
    for bad in
        ["", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", &"A".repeat(20_000)]
    {
        assert!(matches!(pki.sign_host(bad, id), Err(Error::Request(_))), "{bad:.40}");
    }
    let weak = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = CertificateParams::new(Vec::new()).unwrap().serialize_request(&weak).unwrap().pem().unwrap();
    assert!(matches!(pki.sign_host(&csr, id), Err(Error::Request(_))));
}

/// An agent's TLS, as far as a test needs it.
fn agent_config(pki: &Pki, id: HostId) -> ServerConfig {
    let (key, csr) = request();
    let pem = pki.sign_host(&csr, id).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(pki.ca.roots().unwrap(), provider()).build().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
        .unwrap()
}

#[tokio::test]
async fn a_connection_reaches_the_host_that_is_meant_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &[], &Clock::default());
    let (id, other) = (HostId::new(), HostId::new());
    let acceptor = TlsAcceptor::from(Arc::new(agent_config(&pki, id)));
    let connector = TlsConnector::from(pki.agent_client_config(10).unwrap());
    for (meant, reached) in [(id, true), (other, false)] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (client, server) = tokio::join!(connector.connect(agent_name(meant).unwrap(), near), acceptor.accept(far));
        assert_eq!(client.is_ok(), reached);
        if let Ok(server) = server {
            assert!(reached);
            let shown = server.get_ref().1.peer_certificates().unwrap()[0].clone();
            assert!(names_of(&shown).unwrap().contains(CONTROLLER_DNS_NAME));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_shows_its_certificate_again_after_a_while() {
    use super::super::sessions::FULL_EVERY;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &[], &Clock::default());
    let id = HostId::new();
    let acceptor = TlsAcceptor::from(Arc::new(agent_config(&pki, id)));
    let connector = TlsConnector::from(pki.agent_client_config(10).unwrap());
    let connect = async || {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (client, server) = tokio::join!(connector.connect(agent_name(id).unwrap(), near), acceptor.accept(far));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        // Tickets come behind the handshake.
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        client.read_u8().await.unwrap();
        client.get_ref().1.handshake_kind().unwrap() == rustls::HandshakeKind::Resumed
    };
    assert!(!connect().await);
    for _ in 0..3 {
        assert!(connect().await);
        tokio::time::advance(FULL_EVERY / 4).await;
    }
    assert!(connect().await);
    tokio::time::advance(FULL_EVERY / 4).await;
    assert!(!connect().await, "however often it was resumed");
    assert!(connect().await);
}

#[test]
fn a_controller_is_believed_by_who_knows_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(dir.path(), &[], &Clock::default());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(pki.ca.roots().unwrap(), provider())
        .build()
        .unwrap();
    let chain = pki.current.0.load().cert.clone();
    assert_eq!(chain.len(), 2, "the authority is sent along, for hosts that join by its fingerprint");
    let verify = |name: &'static str| {
        use rustls::client::danger::ServerCertVerifier as _;
        verifier.verify_server_cert(&chain[0], &chain[1..], &ServerName::try_from(name).unwrap(), &[], UnixTime::now())
    };
    assert!(verify(CONTROLLER_DNS_NAME).is_ok() && verify("localhost").is_ok());
    assert!(verify("example.com").is_err());
}
