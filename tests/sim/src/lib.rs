//! The simulator: thousands of hosts in one process that speak the agent's wire for real (mutual TLS,
//! join by token, commands, callbacks, pings, events) and only pretend what is behind it.
//!
//! - [`host`]: one host, with what happens to it and what an operator does there.
//! - [`state`]: what is on a host. - [`ops`]: the commands on it. - [`task`]: run once, in order.
//! - [`fault`]: what goes wrong, switched on and off at run time. - [`control`]: the same over HTTP.
//! - [`pings`]: when they were pinged. - [`history`]: what the agents were told, to be checked afterwards.
//! - [`serve`], [`console`], [`outbound`], [`tls`]: the wire. - [`client`]: the public API, for whoever plays with them.
//!
//! Nothing here knows the controller's code: it is tested against the wire as written down in
//! `shared::wire`.

pub mod client;
mod console;
pub mod control;
pub mod fault;
pub mod history;
pub mod host;
pub mod ops;
pub mod outbound;
pub mod pings;
mod serve;
pub mod state;
mod task;
pub mod tls;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use http::Method;
use sha2::{Digest, Sha256};
use shared::api::image::DiskFormat;
use shared::id::HostId;
use shared::name::Name;
use shared::units::Bytes;
use shared::wire::host::{Join, Joined};
use shared::wire::image::ImageInfo;
use tokio::net::TcpSocket;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use console::greeting;
pub use fault::{Fault, FaultId, Faults, What};
pub use history::{Action, Fate, Note};
pub use host::Host;
pub use tls::Identity;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 16_384;

/// How the hosts of a simulator are.
#[derive(Clone, Debug)]
pub struct Options {
    /// `https://ADDRESS:PORT` of the controller.
    pub controller: String,
    /// The same seed gives the same choices.
    pub seed: u64,
    /// Hosts are named after it, with a number.
    pub prefix: String,
    /// Part of the commands, 0 to 1, that are answered `202` and by callback.
    pub deferred: f64,
    /// Processors of a host.
    pub cpus: u32,
    /// Memory of a host.
    pub memory: Bytes,
    /// Disk of a host.
    pub disk: Bytes,
}

impl Options {
    /// Hosts with 16 processors, 64 GiB of memory and 1 TiB of disk that answer every command at once.
    pub fn new(controller: impl Into<String>) -> Self {
        Self {
            controller: controller.into(),
            seed: 1,
            prefix: "sim".to_string(),
            deferred: 0.0,
            cpus: 16,
            memory: Bytes::gib(64),
            disk: Bytes::gib(1024),
        }
    }
}

/// How one host is.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Its name.
    pub name: Name,
    /// The id of an earlier life.
    pub host_id: Option<HostId>,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Disk.
    pub disk: Bytes,
    /// Architecture.
    pub arch: String,
}

/// What all hosts of a simulator share.
pub(crate) struct Shared {
    pub options: Options,
    pub faults: Faults,
    pub names: Arc<tls::Names>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    pub history: history::History,
    controllers: Mutex<VecDeque<String>>,
    images: Mutex<HashMap<String, shared::Result<ImageInfo>>>,
    /// Hosts by id, for those that reach each other.
    pub neighbours: Mutex<HashMap<HostId, Weak<Host>>>,
    wire: OnceLock<Wire>,
    /// The hosts by their addresses, which differ in the address alone.
    called: RwLock<HashMap<IpAddr, Weak<Host>>>,
    port: OnceCell<u16>,
    /// Each holds it while it is open, as this does.
    open: Arc<()>,
    born: Instant,
}

/// What can only be made once the certificate authority is known.
struct Wire {
    ca: Arc<str>,
    server: Arc<rustls::ServerConfig>,
    client: rustls::ClientConfig,
}

impl Shared {
    /// The controller that is asked now.
    fn controller(&self) -> String {
        let controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        controllers.front().cloned().unwrap_or_default()
    }

    /// Asks the next controller from now on, unless somebody has turned away from `url` already.
    fn turn_away(&self, url: &str) {
        let mut controllers = self.controllers.lock().unwrap_or_else(PoisonError::into_inner);
        if controllers.front().is_some_and(|first| url.starts_with(first.as_str())) {
            controllers.rotate_left(1);
        }
    }

    fn server_config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.wire().server)
    }

    fn client(&self) -> &rustls::ClientConfig {
        &self.wire().client
    }

    #[expect(clippy::expect_used, reason = "a host exists only after the wire was made for its certificate")]
    fn wire(&self) -> &Wire {
        self.wire.get().expect("no host has joined")
    }

    /// Answers with a host's certificate from now on. What all have in common is kept once.
    fn adopt(&self, mut identity: Identity) -> Arc<Identity> {
        if identity.ca == self.wire().ca {
            identity.ca = Arc::clone(&self.wire().ca);
        }
        self.names.set(&identity);
        Arc::new(identity)
    }

    /// The host at an address.
    fn called(&self, address: IpAddr) -> Option<Arc<Host>> {
        self.called.read().unwrap_or_else(PoisonError::into_inner).get(&address)?.upgrade()
    }

    /// The port of all hosts, where somebody listens from the first call on.
    async fn port(self: &Arc<Self>) -> std::io::Result<u16> {
        let port = self.port.get_or_try_init(|| async {
            let listener = TcpSocket::new_v4()?;
            listener.bind((Ipv4Addr::UNSPECIFIED, 0).into())?;
            let listener = listener.listen(BACKLOG)?;
            let port = listener.local_addr()?.port();
            self.tasks.spawn(serve::listen(Arc::clone(self), listener, self.stop.clone()));
            Ok(port)
        });
        port.await.copied()
    }

    fn image(&self, url: &str) -> shared::Result<ImageInfo> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(url).cloned().unwrap_or_else(|| Ok(plausible_image(url)))
    }
}

/// A simulator. Dropping it stops it; [`Sim::shutdown`] also waits.
pub struct Sim {
    shared: Arc<Shared>,
    hosts: Mutex<Vec<Arc<Host>>>,
    next: AtomicU32,
    addresses: AtomicU32,
}

impl Sim {
    /// A simulator without hosts.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let shared = Shared {
            faults: Faults::new(options.seed),
            names: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            history: history::History::default(),
            controllers: Mutex::new(VecDeque::from([options.controller.clone()])),
            images: Mutex::default(),
            wire: OnceLock::new(),
            called: RwLock::default(),
            port: OnceCell::new(),
            open: Arc::default(),
            born: Instant::now(),
            neighbours: Mutex::default(),
            options,
        };
        Self {
            shared: Arc::new(shared),
            hosts: Mutex::default(),
            next: AtomicU32::new(1),
            addresses: AtomicU32::new(0),
        }
    }

    /// The faults, to be switched on and off.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Connections that are open to hosts.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        Arc::strong_count(&self.shared.open) - 1
    }

    /// How long it runs.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.shared.born.elapsed()
    }

    /// The hosts, in the order in which they joined.
    #[must_use]
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A host by its id.
    #[must_use]
    pub fn host(&self, id: HostId) -> Option<Arc<Host>> {
        self.hosts().into_iter().find(|host| host.id == id)
    }

    /// What the agents were told.
    #[must_use]
    pub fn history(&self) -> &history::History {
        &self.shared.history
    }

    /// Where the controller is from now on.
    pub fn set_controller(&self, url: impl Into<String>) {
        self.set_controllers([url.into()]);
    }

    /// Where the controllers are from now on: one that is not reached makes way for the next one.
    pub fn set_controllers(&self, urls: impl IntoIterator<Item = String>) {
        *self.shared.controllers.lock().unwrap_or_else(PoisonError::into_inner) = urls.into_iter().collect();
    }

    /// What a download of `url` gives. An address that is not in this table gives a small qcow2 image.
    pub fn set_image(&self, url: impl Into<String>, result: shared::Result<ImageInfo>) {
        self.shared.images.lock().unwrap_or_else(PoisonError::into_inner).insert(url.into(), result);
    }

    /// How the next host is when nothing else is said.
    ///
    /// # Errors
    /// When the prefix is not a name.
    pub fn next_spec(&self) -> anyhow::Result<HostSpec> {
        let n = self.next.fetch_add(1, Relaxed);
        let options = &self.shared.options;
        Ok(HostSpec {
            name: format!("{}-{n}", options.prefix).parse()?,
            host_id: None,
            cpus: options.cpus,
            memory: options.memory,
            disk: options.disk,
            arch: "x86_64".to_string(),
        })
    }

    /// Has one more host join with a one-time token.
    ///
    /// # Errors
    /// When the controller refuses or is not reached.
    pub async fn join(&self, token: &str) -> anyhow::Result<Arc<Host>> {
        self.join_as(token, self.next_spec()?).await
    }

    /// Has this host join with a one-time token.
    ///
    /// # Errors
    /// When the controller refuses or is not reached.
    pub async fn join_as(&self, token: &str, spec: HostSpec) -> anyhow::Result<Arc<Host>> {
        let address = self.next_address().await?;
        let (key, csr) = tls::key_and_request()?;
        let join = Join {
            token: token.to_string(),
            name: spec.name.clone(),
            csr,
            port: address.port(),
            address: Some(address.ip().to_string()),
            host_id: spec.host_id,
            facts: host::facts(&spec),
        };
        let url = format!("{}/agent/v1/join", self.shared.controller());
        let client = Arc::new(tls::join_config(tls::fingerprint_of_token(token)?)?);
        let answer = outbound::send(&client, Method::POST, &url, serde_json::to_vec(&join)?).await?;
        let joined: Joined = answer.read()?;
        let identity = Identity::new(joined.host_id, &joined.certificate, joined.ca.into(), &key)?;
        let host = self.serve(spec, identity, address)?;
        host.tell(joined.controllers);
        Ok(host)
    }

    /// Starts a host that has a certificate already.
    ///
    /// # Errors
    /// When its certificate authority cannot be read.
    pub fn serve(&self, spec: HostSpec, identity: Identity, address: SocketAddr) -> anyhow::Result<Arc<Host>> {
        if self.shared.wire.get().is_none() {
            let server = tls::server_config(&identity.ca, Arc::clone(&self.shared.names))?;
            let client = tls::client_config(&identity.ca)?;
            // Two hosts that join at once make the same thing; the first one stays.
            let _ = self.shared.wire.set(Wire { ca: Arc::clone(&identity.ca), server, client });
        }
        let host = Host::start(Arc::clone(&self.shared), spec, identity, address);
        self.shared.called.write().unwrap_or_else(PoisonError::into_inner).insert(address.ip(), Arc::downgrade(&host));
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&host));
        Ok(host)
    }

    /// An address of the loopback network for the next host, so that ports never run out.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn next_address(&self) -> std::io::Result<SocketAddr> {
        // 1 to 254 in the last place; the networks below 127.16 are left to others.
        let n = self.addresses.fetch_add(1, Relaxed);
        let [_, b, c, _] = (n / 254 * 256).to_be_bytes();
        let d = (n % 254 + 1) as u8;
        Ok((Ipv4Addr::new(127, b.wrapping_add(16), c, d), self.shared.port().await?).into())
    }

    /// Runs a task for as long as the simulator runs.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Stops all hosts and waits until nothing of them runs.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What a download of an address gives that nobody has said anything about: 20 MiB of qcow2 that
/// unfold to 1 GiB, with a checksum that depends on the address.
#[must_use]
pub fn plausible_image(url: &str) -> ImageInfo {
    ImageInfo {
        format: DiskFormat::Qcow2,
        sha256: sha256_hex(url.as_bytes()),
        size: Bytes::mib(20),
        virtual_size: Bytes::gib(1),
    }
}

/// Hexadecimal SHA-256.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
