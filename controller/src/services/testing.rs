//! A controller without its listener, for tests of handlers: real bus, engine, certificates and
//! database, and a host whose agent is played by the test.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde_json::Value;
use shared::api::job::{Job, JobRef};
use shared::id::{AccountId, ControllerId, HostId};
use shared::wire::AgentCommand;
use shared::{Error, Result};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::agent_client::Agents;
use crate::auth::tls::{Pki, provider};
use crate::bus::{ApiRequest, Bus, Limits, LocalTransport, Loopback, Registry, Request};
use crate::clock::Clock;
use crate::config::{PkiConfig, ServicesConfig};
use crate::cx::{Caller, Cx, Idempotency};
use crate::db::testing::{Seed, TestDb, dbs};
use crate::deps::Deps;
use crate::messages::job::WaitJob;
use crate::metrics::Metrics;
use crate::placement::Placement;
use crate::ring::Ring;
use crate::services::{self, Context};
use crate::settings::Settings;
use crate::workflow::Engine;

/// A controller on a database of its own.
pub struct TestSystem {
    /// What services have at hand.
    pub context: Context,
    /// The bus.
    pub bus: Arc<Bus>,
    /// What is in the database from the beginning.
    pub seed: Seed,
    /// A call of an admin.
    pub admin: Cx,
    /// A call of the seed's account.
    pub tenant: Cx,
    /// The agent of the seed's host; it answers nothing that a test has not said.
    pub agent: PlayedAgent,
    _stop: DropGuard,
    _data: tempfile::TempDir,
    /// Its database.
    pub db: TestDb,
}

/// One controller for each kind of database.
pub async fn systems() -> Vec<TestSystem> {
    systems_without(&[]).await
}

/// The same, without some services.
pub async fn systems_without(disabled: &[&str]) -> Vec<TestSystem> {
    let services = ServicesConfig { disabled: disabled.iter().map(ToString::to_string).collect() };
    let mut systems = Vec::new();
    for db in dbs().await {
        systems.push(TestSystem::start(db, &services).await);
    }
    systems
}

/// A call of an account.
pub fn call_of(id: AccountId, admin: bool) -> Cx {
    Cx { caller: Caller::Account { id, admin }, ..Cx::system(Duration::from_secs(60)) }
}

/// The same call with an idempotency key.
pub fn with_key(cx: &Cx, key: &str, request: &str) -> Cx {
    let idempotency = Idempotency { key: key.to_string(), request_hash: request.to_string() };
    Cx { idempotency: Some(Arc::new(idempotency)), ..cx.clone() }
}

impl TestSystem {
    async fn start(db: TestDb, services: &ServicesConfig) -> Self {
        let (tasks, stop, clock) = (TaskTracker::new(), CancellationToken::new(), Clock::default());
        let data = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(data.path().join("pki"), &[], PkiConfig::default(), clock.clone()).unwrap());
        let mut seed = Seed::unplanted();
        let agent = PlayedAgent::start(&pki, seed.host.id, &tasks).await;
        seed.host.address.clone_from(&agent.address);
        seed.plant(&db).await;
        let me = ControllerId::new();
        let ring = Ring::new(me);
        ring.install(1, &[me]);
        let tls = pki.agent_client_config(16).unwrap();
        let deps = Arc::new(Deps {
            mover: Default::default(),
            db: db.db.clone(),
            agents: Agents::new(
                tls,
                "https://127.0.0.1:1".to_string(),
                tasks.clone(),
                CancellationToken::new(),
                clock.clone(),
                ring.clone(),
            ),
            pki,
            ring: ring.clone(),
            placement: Placement::start(db.db.clone(), &tasks, stop.clone()),
            clock: clock.clone(),
            data_dir: data.path().to_path_buf(),
            settings: Settings::default(),
            metrics: Metrics::default(),
        });
        let engine = Engine::new(Arc::clone(&deps), services::flows(services), &tasks, stop.clone());
        let context = Context::new(deps, engine);
        let mut registry = Registry::new(tasks.clone());
        services::register(services, &context, &mut registry);
        let (transport, inbox) = LocalTransport::new(me, 100);
        let wires = (Arc::new(transport) as _, inbox);
        let bus = Bus::start(registry, ring, clock, Limits::default(), Loopback::Broker, wires, (tasks, stop.clone()));
        context.set_bus(Arc::clone(&bus));
        Self {
            context,
            bus,
            admin: call_of(AccountId::new(), true),
            tenant: call_of(seed.account.id, false),
            seed,
            agent,
            _stop: stop.drop_guard(),
            _data: data,
            db,
        }
    }

    /// Sends a request as an admin.
    pub async fn by_admin<M: ApiRequest>(&self, message: M) -> Result<M::Reply> {
        self.bus.call(&self.admin, message).await
    }

    /// Sends a request as the seed's account.
    pub async fn by_tenant<M: Request>(&self, message: M) -> Result<M::Reply> {
        self.bus.call(&self.tenant, message).await
    }

    /// Waits until a job has ended.
    pub async fn end_of(&self, job: JobRef) -> Job {
        let ended = self.bus.call(&self.admin, WaitJob { id: job.job_id }).await.unwrap();
        assert!(ended.state.is_final(), "it does not end: {ended:?}");
        ended
    }

    /// Paths of all events so far, in order.
    pub async fn event_paths(&self) -> Vec<String> {
        let mut conn = self.context.deps.db.read().await.unwrap();
        let events = crate::db::event::between(&mut conn, (0, i64::MAX), 1000, None).await.unwrap();
        events.into_iter().map(|event| event.path).collect()
    }
}

/// An agent that a test plays: it answers each command at once, with what it was told to.
#[derive(Clone)]
pub struct PlayedAgent {
    address: String,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    answers: VecDeque<(&'static str, std::result::Result<Value, Error>)>,
    commands: Vec<&'static str>,
}

impl PlayedAgent {
    /// Listens with a certificate for the host.
    async fn start(pki: &Pki, host: HostId, tasks: &TaskTracker) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let pem = pki.sign_host(&request, host).unwrap();
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = Self { address: listener.local_addr().unwrap().to_string(), script: Arc::default() };
        let (acceptor, played) = (TlsAcceptor::from(Arc::new(config)), agent.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let answer = service_fn(|request| played.answer(request));
                // The controller closes after one exchange.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            }
        });
        agent
    }

    /// The next command is `C`, and is answered so.
    pub fn will_answer<C: AgentCommand>(&self, reply: Result<C::Reply>)
    where
        C::Reply: Serialize,
    {
        let reply = reply.map(|reply| serde_json::to_value(reply).unwrap());
        self.script.lock().unwrap().answers.push_back((C::PATH, reply));
    }

    /// The commands so far, `<noun>/<verb>`.
    pub fn commands(&self) -> Vec<&'static str> {
        self.script.lock().unwrap().commands.clone()
    }

    async fn answer(&self, request: http::Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let path = request.uri().path().to_string();
        request.into_body().collect().await?;
        let mut script = self.script.lock().unwrap();
        let answer = match script.answers.pop_front() {
            Some((command, answer)) if path == format!("/v1/commands/{command}") => {
                script.commands.push(command);
                answer
            }
            other => Err(Error::internal(format_args!("{path} came instead of {:?}", other.map(|(c, _)| c)))),
        };
        let (status, body) = match answer {
            Ok(reply) => (200, serde_json::to_vec(&reply)),
            Err(error) => (error.code.status(), serde_json::to_vec(&error)),
        };
        let mut response = Response::new(Full::new(Bytes::from(body.unwrap())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Ok(response)
    }
}
