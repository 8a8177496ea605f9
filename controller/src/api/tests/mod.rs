//! The gateway as its users meet it: over real TLS, with services that a test makes up.

mod agents;
mod auth;
mod changes;
mod consoles;
mod contracts;
mod events;
mod limits;
mod lists;
mod refusals;
mod uploads;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use shared::api::account::AccountKind;
use shared::id::{AccountId, ControllerId, HostId, TaskId};
use shared::wire::TaskReport;
use shared::{Code, Error};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CallbackSink, Parts, Server};
use crate::agent_client::Agents;
use crate::auth::tls::{Pki, provider};
use crate::auth::token::sha256_hex;
use crate::bus::{Bus, Limits, LocalTransport, Loopback, Registry};
use crate::clock::Clock;
use crate::config::{ApiConfig, Config};
use crate::db::Db;
use crate::messages::account::{Authenticate, Identity};
use crate::metrics::Metrics;
use crate::ring::Ring;

/// Token of the admin account.
const ADMIN: &str = "admin-token";
/// Token of an ordinary account.
const TENANT: &str = "tenant-token";

/// Remembers what agents reported; takes the tasks that it expects.
#[derive(Default)]
struct Reports(std::sync::Mutex<HashMap<TaskId, HostId>>);

impl CallbackSink for Reports {
    fn deliver(&self, host: HostId, report: TaskReport) -> bool {
        self.0.lock().unwrap().remove(&report.task_id()) == Some(host)
    }
}

/// A gateway with made-up services.
struct Gateway {
    dir: tempfile::TempDir,
    server: Server,
    pki: Arc<Pki>,
    db: Db,
    reports: Arc<Reports>,
    tenant: AccountId,
    clock: Clock,
}

impl Gateway {
    async fn start(services: impl FnOnce(&mut Registry)) -> Self {
        Self::start_with(|_| (), services).await
    }

    async fn start_with(configure: impl FnOnce(&mut ApiConfig), services: impl FnOnce(&mut Registry)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        config.api.listen = "127.0.0.1:0".parse().unwrap();
        configure(&mut config.api);
        let (clock, tasks) = (Clock::default(), TaskTracker::new());
        let db = Db::open(&config.database_url(), &tasks).await.unwrap();
        let pki = Arc::new(Pki::open(config.pki_dir(), &[], config.pki, clock.clone()).unwrap());
        let (admin, tenant) = (AccountId::new(), AccountId::new());
        let mut registry = Registry::new(tasks.clone());
        registry.serve(move |_, m: Authenticate| async move {
            let known = [(ADMIN, admin, AccountKind::Admin), (TENANT, tenant, AccountKind::Normal)];
            let found = known.into_iter().find(|(token, ..)| sha256_hex(token) == m.secret_sha256);
            let (_, account_id, kind) =
                found.ok_or_else(|| Error::new(Code::Unauthenticated, "the token is unknown or has expired"))?;
            Ok(Identity { account_id, kind, expires_at: None })
        });
        services(&mut registry);
        let me = ControllerId::new();
        let ring = Ring::new(me);
        ring.install(1, &[me]);
        let (transport, inbox) = LocalTransport::new(me, 1000);
        let stop = (tasks.clone(), CancellationToken::new());
        let transport = (Arc::new(transport) as Arc<_>, inbox);
        let bus =
            Bus::start(registry, ring.clone(), clock.clone(), Limits::default(), Loopback::Direct, transport, stop);
        let agents = Agents::new(
            pki.agent_client_config(10).unwrap(),
            String::new(),
            tasks,
            CancellationToken::new(),
            clock.clone(),
            ring,
        );
        let reports = Arc::new(Reports::default());
        let parts = Parts {
            bus,
            db: db.clone(),
            config,
            clock: clock.clone(),
            pki: Arc::clone(&pki),
            agents,
            callbacks: Arc::clone(&reports) as Arc<dyn CallbackSink>,
            metrics: Metrics::default(),
        };
        let server = Server::start(parts).await.unwrap();
        Self { dir, server, pki, db, reports, tenant, clock }
    }

    /// A TLS connection, with the certificate of a host when there is one.
    async fn connect(&self, host: Option<HostId>) -> TlsStream<TcpStream> {
        let connector = TlsConnector::from(Arc::new(self.client_config(host)));
        let tcp = TcpStream::connect(self.server.address()).await.unwrap();
        connector.connect(ServerName::try_from("controller.kring").unwrap(), tcp).await.unwrap()
    }

    fn client_config(&self, host: Option<HostId>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.pki.ca().roots().unwrap());
        let Some(host) = host else { return builder.with_no_client_auth() };
        let (certificate, key) = certificate(&self.pki, host);
        builder.with_client_auth_cert(vec![certificate], key).unwrap()
    }

    fn get(&self, path: &str) -> Call<'_> {
        self.call(Method::GET, path)
    }

    fn post(&self, path: &str, body: Value) -> Call<'_> {
        self.call(Method::POST, path).json(&body)
    }

    fn call(&self, method: Method, path: &str) -> Call<'_> {
        let request = Request::builder().method(method).uri(path).header("host", "controller.kring");
        Call { gateway: self, request, body: Bytes::new(), host: None }
    }
}

/// A host's certificate and key, as after a join.
fn certificate(pki: &Pki, host: HostId) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap().pem().unwrap();
    let pem = pki.sign_host(&csr, host).unwrap();
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    (certificate, PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
}

/// A request of a test.
struct Call<'a> {
    gateway: &'a Gateway,
    request: http::request::Builder,
    body: Bytes,
    host: Option<HostId>,
}

impl Call<'_> {
    fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    fn admin(self) -> Self {
        self.token(ADMIN)
    }

    fn tenant(self) -> Self {
        self.token(TENANT)
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    fn json(self, body: &Value) -> Self {
        self.body(body.to_string()).header("content-type", "application/json")
    }

    fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// With the certificate of this host.
    fn host(mut self, host: HostId) -> Self {
        self.host = Some(host);
        self
    }

    async fn send(self) -> Reply {
        let stream = self.gateway.connect(self.host).await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let request = self.request.body(Full::new(self.body)).unwrap();
        let answer = async {
            let response = sender.send_request(request).await.unwrap();
            let (parts, body) = response.into_parts();
            // A refusal may come before all of a body was sent, and then the connection ends.
            let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            Reply { status: parts.status, headers: parts.headers, body: text }
        };
        tokio::pin!(connection, answer);
        tokio::select! {
            biased;
            reply = &mut answer => reply,
            _ = &mut connection => answer.await,
        }
    }
}

/// What a test reads.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// The status and the code of a problem, after checking that it is a whole one.
    fn problem(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let json = self.json();
        let code = json["code"].as_str().unwrap();
        assert_eq!(json["status"], self.status.as_u16());
        assert_eq!(json["type"], format!("/docs/errors#{code}"));
        assert_eq!(json["request_id"], self.header("x-request-id"));
        assert!(!json["title"].as_str().unwrap().is_empty() && !json["detail"].as_str().unwrap().is_empty());
        (self.status.as_u16(), code.to_string())
    }
}
