//! A message broker of a test's own, which it may kill, freeze and starve, and buses of controllers over
//! it. `tests/lab/rabbitmq.sh` starts it; it ends with its owner.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use controller::bus::rabbit::{RabbitTransport, Settings};
use controller::bus::{Bus, Limits, Loopback, Registry, Transport as _};
use controller::clock::Clock;
use controller::ring::Ring;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use shared::id::ControllerId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cmd;

/// Brokers that this process has started.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A RabbitMQ broker.
pub struct Broker {
    folder: PathBuf,
    /// `amqp://…`, with user and password.
    pub url: String,
    /// `amqps://…`, when it was started with TLS.
    pub tls_url: Option<String>,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/rabbitmq.sh")
}

impl Broker {
    /// Starts one.
    ///
    /// # Errors
    /// When RabbitMQ is not installed or does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_in(new_folder()).await
    }

    /// Starts one that also listens with TLS, its certificate made out to `localhost`.
    ///
    /// # Errors
    /// When RabbitMQ is not installed or does not start.
    pub async fn start_with_tls() -> anyhow::Result<Self> {
        let folder = new_folder();
        let tls = folder.join("tls");
        std::fs::create_dir_all(&tls)?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["localhost".to_string()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        std::fs::write(tls.join("ca.pem"), authority.pem())?;
        std::fs::write(tls.join("cert.pem"), params.signed_by(&key, &authority)?.pem())?;
        std::fs::write(tls.join("key.pem"), key.serialize_pem())?;
        Self::start_in(folder).await
    }

    async fn start_in(folder: PathBuf) -> anyhow::Result<Self> {
        let script = script();
        cmd::run(script.as_os_str(), &[OsStr::new("sweep")]).await?;
        // Made before it starts, so that it ends also when starting fails half-way.
        let mut broker = Self { folder, url: String::new(), tls_url: None };
        let urls = broker.script("start").await?;
        let mut lines = urls.lines();
        broker.url = lines.next().context("the script prints the URL")?.to_string();
        broker.tls_url = lines.next().map(str::to_string);
        Ok(broker)
    }

    async fn script(&self, verb: &str) -> anyhow::Result<String> {
        cmd::run(script().as_os_str(), &[OsStr::new(verb), self.folder.as_os_str()]).await
    }

    /// Ends it as a crash does.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.script("kill").await.map(drop)
    }

    /// Ends it in order, when it runs, and starts it again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.script("restart").await.map(drop)
    }

    /// Stops it as a debugger does, without ending it.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        self.script("freeze").await.map(drop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        self.script("thaw").await.map(drop)
    }

    /// `rabbitmqctl`: what it prints.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn ctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut all = vec![OsStr::new("ctl"), self.folder.as_os_str()];
        all.extend(args.iter().map(OsStr::new));
        cmd::run(script().as_os_str(), &all).await
    }

    /// The broker and its version.
    ///
    /// # Errors
    /// When `rabbitmqctl` fails.
    pub async fn version(&self) -> anyhow::Result<String> {
        Ok(format!("RabbitMQ {}", self.ctl(&["version"]).await?.trim()))
    }

    /// The names of all queues, sorted.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn queues(&self) -> anyhow::Result<Vec<String>> {
        let text = self.ctl(&["list_queues", "--no-table-headers", "name"]).await?;
        let mut queues: Vec<_> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string).collect();
        queues.sort_unstable();
        Ok(queues)
    }

    /// File with the certificate of its authority.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("tls/ca.pem")
    }

    /// How a controller goes there.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings { url: self.url.clone(), ca_file: None, credentials_file: None, prefetch: 256 }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        cmd::run_to_end(script().as_os_str(), &[OsStr::new("stop"), self.folder.as_os_str()]);
    }
}

/// A name by which brokers of a process that was killed are found and removed.
fn new_folder() -> PathBuf {
    let n = STARTED.fetch_add(1, Relaxed);
    PathBuf::from(format!("/var/tmp/kring-test-rabbitmq.{n}.{}", std::process::id()))
}

/// The bus of a controller that is nothing else.
pub struct Node {
    /// Its id.
    pub id: ControllerId,
    /// Its bus.
    pub bus: Arc<Bus>,
    /// Its ring, which the test installs.
    pub ring: Ring,
    /// What its bus sends with.
    pub transport: Arc<RabbitTransport>,
    stop: CancellationToken,
}

impl Node {
    /// A bus with what `register` registers; alone in its ring.
    #[must_use]
    pub fn start(settings: Settings, register: impl FnOnce(&mut Registry)) -> Self {
        let id = ControllerId::new();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut registry = Registry::new(tasks.clone());
        register(&mut registry);
        let (transport, inbox) = RabbitTransport::start(settings, id, registry.service_names(), Clock::default());
        let ring = Ring::new(id);
        ring.install(1, &[id]);
        let wires = (Arc::clone(&transport) as _, inbox);
        let bus = Bus::start(
            registry,
            ring.clone(),
            Clock::default(),
            Limits::default(),
            Loopback::Direct,
            wires,
            (tasks, stop.clone()),
        );
        Self { id, bus, ring, transport, stop }
    }

    /// Waits until it is connected.
    ///
    /// # Errors
    /// When that takes too long; with the reason that is known.
    pub async fn connected(&self) -> anyhow::Result<()> {
        let connected = self.transport.wait_connected(Duration::from_secs(90)).await;
        anyhow::ensure!(connected, "not connected: {:?}", self.transport.health());
        Ok(())
    }

    /// Leaves in order.
    pub async fn leave(&self) {
        self.bus.close().await;
        self.stop.cancel();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
