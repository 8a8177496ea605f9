//! TLS: the controller's own authority is believed, for any address, and nobody else.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::cmd::{Run, finish, kring};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a certificate for this name that answers every request with an empty page.
async fn serve(ca: &CertifiedIssuer<'static, KeyPair>, name: &str, tasks: &mut JoinSet<()>) -> String {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec![name.to_string()]).unwrap().signed_by(&key, ca).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tasks.spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            // A client that does not believe us leaves in the middle.
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let mut request = [0_u8; 4096];
            if tls.read(&mut request).await.is_ok() {
                let body = "{\"items\":[]}";
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = tls.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        }
    });
    url
}

async fn list(url: &str, ca: &CertifiedIssuer<'static, KeyPair>) -> Run {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("ca.pem");
    std::fs::write(&file, ca.pem()).unwrap();
    let mut command = kring(home.path());
    command.env("KRING_URL", url).env("KRING_CA", &file).env("KRING_TOKEN", "t").args(["zone", "list", "-o", "json"]);
    finish(command).await
}

#[tokio::test]
async fn a_controller_is_believed_by_its_name_at_any_address() {
    let mut tasks = JoinSet::new();
    let ca = authority();
    let url = serve(&ca, "controller.kring", &mut tasks).await;
    assert_eq!(list(&url, &ca).await.ended(0).stdout, "[]\n");
    let by_address = serve(&ca, "127.0.0.1", &mut tasks).await;
    list(&by_address, &ca).await.ended(0);
}

#[tokio::test]
async fn another_authority_or_another_name_is_not_believed() {
    let mut tasks = JoinSet::new();
    let ca = authority();
    let url = serve(&authority(), "controller.kring", &mut tasks).await;
    let run = list(&url, &ca).await.ended(5);
    assert!(run.stderr.contains("certificate") && run.stderr.contains("ca.pem"), "{}", run.stderr);
    let url = serve(&ca, "host-7.kring", &mut tasks).await;
    list(&url, &ca).await.ended(5);
}

#[tokio::test]
async fn a_file_without_a_certificate_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("ca.pem");
    std::fs::write(&file, "hello").unwrap();
    let mut command = kring(home.path());
    command.env("KRING_URL", "https://127.0.0.1:1").env("KRING_CA", &file).args(["zone", "list"]);
    let run = finish(command).await.ended(2);
    assert!(run.stderr.contains("there is no certificate in it"), "{}", run.stderr);
}
