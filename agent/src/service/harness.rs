//! A controller that writes down what it is told, and an agent beside it, both on loopback with
//! certificates of one authority.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::id::{HostId, TaskId};
use shared::time::Timestamp;
use shared::wire::{AgentCommand, TaskReport};
use shared::wire::{HEADER_CALLBACK, HEADER_DEADLINE, HEADER_GENERATION, HEADER_TASK, host_dns_name};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::fake::Fake;
use super::{Running, start};
use crate::config::Config;
use crate::identity::tests::TestCa;
use crate::identity::tls;

type Handler = Box<dyn Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync>;

/// A controller: keeps every request, answers as its handler says.
pub(crate) struct Controller {
    pub url: String,
    requests: watch::Sender<Vec<(String, Bytes)>>,
    handler: Mutex<Option<Handler>>,
    _serve: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Controller {
    pub(crate) async fn start(ca: &TestCa) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (chain, key) = ca.controller_chain();
        let roots = {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(ca.der.clone()).unwrap();
            Arc::new(roots)
        };
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, tls::provider())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .unwrap();
        let controller = Arc::new(Self {
            url: format!("https://{}", listener.local_addr().unwrap()),
            requests: watch::Sender::new(Vec::new()),
            handler: Mutex::default(),
            _serve: Mutex::default(),
        });
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let served = Arc::downgrade(&controller);
        let serve = async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, served) = (acceptor.clone(), served.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let served = served.clone();
                        async move {
                            let (head, body) = request.into_parts();
                            let request = Request::from_parts(head, body.collect().await?.to_bytes());
                            let answer = served.upgrade().map(|c| c.answer(request)).unwrap_or_default();
                            Ok::<_, hyper::Error>(answer.map(Full::new))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        };
        let tracker = tokio_util::task::TaskTracker::new();
        *controller._serve.lock().unwrap() = Some(AbortOnDropHandle::new(tracker.spawn(serve)));
        controller
    }

    /// What it answers from now on; `200` without a body otherwise.
    pub(crate) fn on(&self, handler: impl Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync + 'static) {
        *self.handler.lock().unwrap() = Some(Box::new(handler));
    }

    /// Nobody listens at its address any more.
    pub(crate) fn die(&self) {
        self._serve.lock().unwrap().take();
    }

    fn answer(&self, request: Request<Bytes>) -> Response<Bytes> {
        let answer = self.handler.lock().unwrap().as_ref().map(|h| h(&request)).unwrap_or_default();
        let path = request.uri().path().to_string();
        self.requests.send_modify(|all| all.push((path, request.into_body())));
        answer
    }

    /// Waits until a request satisfies `wanted`, and answers with what it makes of it.
    pub(crate) async fn told<T>(&self, wanted: impl Fn(&str, &[u8]) -> Option<T>) -> T {
        let mut requests = self.requests.subscribe();
        loop {
            let found = requests.borrow_and_update().iter().find_map(|(path, body)| wanted(path, body));
            match found {
                Some(found) => return found,
                None => requests.changed().await.unwrap(),
            }
        }
    }

    /// Waits for the final report of a task.
    pub(crate) async fn outcome(&self, id: TaskId) -> TaskReport {
        let path = format!("/agent/v1/callbacks/{id}");
        self.told(|p, body| {
            let report: TaskReport = (p == path).then(|| serde_json::from_slice(body).ok())??;
            (!matches!(report, TaskReport::Running { .. })).then_some(report)
        })
        .await
    }

    pub(crate) fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.requests.borrow().iter().filter(|(path, _)| wanted(path)).count()
    }
}

/// An agent with its controller.
pub(crate) struct World {
    pub ca: TestCa,
    pub controller: Arc<Controller>,
    pub fake: Arc<Fake>,
    pub host_id: HostId,
    pub running: Running,
    pub client: reqwest::Client,
    pub dir: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// An agent that answers with the outcome however busy the machine is.
    pub(crate) async fn patient() -> Self {
        Self::with(|c| c.agent.quick_ms = 10_000).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let (ca, dir, host_id) = (TestCa::new(), tempfile::tempdir().unwrap(), HostId::new());
        let controller = Controller::start(&ca).await;
        ca.join(&dir.path().join("data"), host_id, &controller.url);
        let fake = Arc::new(Fake::default());
        let running = start(config(dir.path(), change), Arc::clone(&fake) as _).await.unwrap();
        let client = client(&ca, Some(ca.controller_chain()), host_id, running.address);
        Self { ca, controller, fake, host_id, running, client, dir }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}:{}{path}", host_dns_name(self.host_id), self.running.address.port())
    }

    /// Sends a command as a controller does.
    pub(crate) async fn send<C: AgentCommand>(&self, id: TaskId, generation: u64, command: &C) -> reqwest::Response {
        self.send_for(id, generation, Duration::from_secs(60), command).await
    }

    pub(crate) async fn send_for<C: AgentCommand>(
        &self,
        id: TaskId,
        generation: u64,
        time: Duration,
        command: &C,
    ) -> reqwest::Response {
        self.send_from(&self.controller.url, id, generation, time, command).await
    }

    /// Sends a command that is to be reported to the controller at `from`.
    pub(crate) async fn send_from<C: AgentCommand>(
        &self,
        from: &str,
        id: TaskId,
        generation: u64,
        time: Duration,
        command: &C,
    ) -> reqwest::Response {
        self.command(from, id, generation, time, command).send().await.unwrap()
    }

    /// A command that is not sent yet.
    pub(crate) fn command<C: AgentCommand>(
        &self,
        from: &str,
        id: TaskId,
        generation: u64,
        time: Duration,
        command: &C,
    ) -> reqwest::RequestBuilder {
        let deadline = Timestamp::now().plus_ms(i64::try_from(time.as_millis()).unwrap());
        self.client
            .post(self.url(&format!("/v1/commands/{}", C::PATH)))
            .header(HEADER_TASK, id.to_string())
            .header(HEADER_GENERATION, generation.to_string())
            .header(HEADER_DEADLINE, deadline.ms().to_string())
            .header(HEADER_CALLBACK, format!("{from}/agent/v1/callbacks/{id}"))
            .json(command)
    }
}

pub(crate) fn config(dir: &std::path::Path, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.agent.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.agent.data_dir = dir.join("data");
    config.agent.run_dir = dir.join("run");
    config.agent.stop_grace_s = 1;
    config.image.keep_free = shared::units::Bytes(0);
    config.image.allow_loopback = true;
    change(&mut config);
    config
}

/// A client that shows a certificate to the agent, or none.
pub(crate) fn client(
    ca: &TestCa,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    host_id: HostId,
    address: SocketAddr,
) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der.clone()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls::install_provider();
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy()
        .resolve(&host_dns_name(host_id), address)
        .build()
        .unwrap()
}
