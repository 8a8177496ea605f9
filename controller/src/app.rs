//! A controller: how its parts are put together, started and stopped, in order.
//!
//! Start: lock and open the database → authority → join → heartbeat → services, flows, bus → become an
//! active member, take up the jobs that were left → listen → reconcilers and pings. Stop: the other way
//! round; a job that is in the middle of a step stays open and goes on elsewhere or at the next start.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use shared::Code;
use shared::id::ControllerId;
use shared::state::controller::ControllerState;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent_client::Agents;
use crate::api::{self, CallbackSink};
use crate::auth::tls::Pki;
use crate::bus::rabbit::RabbitTransport;
use crate::bus::{Bus, LocalTransport, Registry, Transport};
use crate::callbacks::{self, Callbacks};
use crate::clock::Clock;
use crate::config::Config;
use crate::cx::Cx;
use crate::db::{self, Db};
use crate::deps::Deps;
use crate::handover::{self, Handover};
use crate::messages::controller::{EventsAppended, TakeUpJob};
use crate::metrics::Metrics;
use crate::placement::Placement;
use crate::ring::Ring;
use crate::ring::heartbeat::{Heartbeat, Pulse};
use crate::services::{self, Context};
use crate::settings::Settings;
use crate::workflow::Engine;
use crate::{bootstrap, reconcile, systemd};

/// How long jobs may take to come to a stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How long the new owner of a job is looked for; it finds the job by itself a little later.
const TELL_HEIR: Duration = Duration::from_secs(10);

/// How long a start waits until the last life of this controller counts as dead, and how often it looks.
const LAST_LIFE: Duration = Duration::from_millis(db::controller::SILENT_AFTER_MS.unsigned_abs() + 2000);
const LOOK: Duration = Duration::from_millis(250);

/// How long a start waits for the message broker.
const BROKER: Duration = Duration::from_secs(5);

/// Why a controller did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has the data folder.
    #[error("another kring-controller uses {}: stop it first, or give this one another data_dir", .0.display())]
    Locked(PathBuf),
    /// The database.
    #[error("the database at {url} could not be opened")]
    Database {
        /// Without credentials.
        url: String,
        /// Why.
        #[source]
        source: Box<db::Error>,
    },
    /// Certificates.
    #[error("the certificates could not be opened or made")]
    Pki(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The gateway.
    #[error("the API could not be started")]
    Api(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Spans cannot be exported.
    #[error(transparent)]
    Tracing(#[from] trace::export::Error),
    /// Anything else that the parts answer.
    #[error(transparent)]
    Kring(#[from] shared::Error),
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        Self::Kring(error.into())
    }
}

/// What is done once, before a controller serves: the folder, the database, the authority.
pub struct Foundation {
    config: Config,
    clock: Clock,
    db: Db,
    pki: Arc<Pki>,
    tasks: TaskTracker,
    /// Held while the process lives.
    lock: Flock<File>,
    /// The admin's token, when this was the first start.
    pub admin_token: Option<String>,
}

impl Foundation {
    /// Opens or makes everything that a controller keeps.
    pub async fn open(config: Config) -> Result<Self, Error> {
        Self::open_at(config, Clock::default()).await
    }

    /// The same, on a machine whose clock says this.
    pub async fn open_at(config: Config, clock: Clock) -> Result<Self, Error> {
        let dir = config.data_dir.clone();
        make_private(&dir).map_err(|source| Error::Io { path: dir.clone(), source })?;
        let lock = lock(&dir)?;
        let tasks = TaskTracker::new();
        let db = open_db(&config, &tasks).await?;
        let asked = Instant::now();
        clock.follow(asked, db.told_at().await?);
        bootstrap::share_authority(&db, &config.pki_dir(), &clock).await?;
        let pki = Pki::open(config.pki_dir(), &config.api.names, config.pki, clock.clone())
            .map_err(|e| Error::Pki(e.into()))?;
        let admin_token = services::account::ensure_admin(&db, &clock).await?;
        bootstrap::ensure_defaults(&db, &clock, &config).await?;
        Ok(Self { config, clock, db, pki: Arc::new(pki), tasks, lock, admin_token })
    }

    /// The certificate authority, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.pki.ca().pem()
    }

    /// Another token of the admin account.
    pub async fn new_admin_token(&self) -> Result<String, Error> {
        Ok(services::account::new_admin_token(&self.db, &self.clock).await?)
    }
}

/// A running controller.
pub struct App {
    db: Db,
    bus: Arc<Bus>,
    context: Context,
    handover: Handover,
    gateway: api::Server,
    heartbeat: Heartbeat,
    tasks: TaskTracker,
    stop: CancellationToken,
    fenced: CancellationToken,
    _lock: Flock<File>,
}

impl App {
    /// Starts a controller. When this answers, it serves.
    pub async fn start(foundation: Foundation) -> Result<Self, Error> {
        let Foundation { config, clock, db, pki, tasks, lock, .. } = foundation;
        let (stop, fenced) = (CancellationToken::new(), CancellationToken::new());
        let me = identity(&config.data_dir)?;
        let ring = Ring::new(me);
        let joined = join(&db, me, &config).await?;
        let (url, dialect) = (config.database_url(), db.dialect());
        let (followed, fences) = (clock.clone(), fenced.clone());
        let pulse = Pulse { url, dialect, joined, ring: ring.clone(), clock: followed, fenced: fences };
        let heartbeat =
            Heartbeat::start(pulse).map_err(|source| Error::Io { path: "the heartbeat thread".into(), source })?;
        ring.on_nudge(heartbeat.nudger());

        export_spans(&config, me, &tasks, &stop)?;
        let tls = pki.agent_client_config(config.hosts.tls_sessions).map_err(|e| Error::Pki(e.into()))?;
        let base = config.callback_base();
        let agents = Agents::new(tls, base, tasks.clone(), stop.clone(), clock.clone(), ring.clone());
        agents.set_own_addresses(config.advertised());
        agents.set_limits(config.hosts.limits());
        let metrics = Metrics::default();
        let deps = Arc::new(Deps {
            mover: Default::default(),
            db: db.clone(),
            agents: Arc::clone(&agents),
            pki: Arc::clone(&pki),
            ring: ring.clone(),
            placement: Placement::start(db.clone(), &tasks, stop.clone()),
            clock: clock.clone(),
            data_dir: config.data_dir.clone(),
            settings: Settings::default(),
            metrics: metrics.clone(),
        });
        services::setting::load(&deps).await?;

        let engine = Engine::new(Arc::clone(&deps), services::flows(&config.services), &tasks, stop.clone());
        let context = Context::new(deps, Arc::clone(&engine));
        let mut registry = Registry::new(tasks.clone());
        services::register(&config.services, &context, &mut registry);
        callbacks::subscribe(&mut registry, &agents);
        for (service, most) in &config.bus.service_limits {
            registry.limit(service, *most)?;
        }
        let (transport, inbox) = transport(&config, me, &registry, &clock).await;
        let bus = Bus::start(
            registry,
            ring.clone(),
            clock.clone(),
            config.bus.limits(),
            config.bus.loopback,
            (transport, inbox),
            (tasks.clone(), stop.clone()),
        );
        context.set_bus(Arc::clone(&bus));

        let engine = Arc::clone(&context.engine);
        let handover = Handover {
            db: db.clone(),
            ring,
            bus: Arc::clone(&bus),
            engine,
            agents: Arc::clone(&agents),
            joined,
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let heirs = Arc::clone(&bus);
        handover.engine.on_release(move |id, resource| {
            heirs.notify(&Cx::system(TELL_HEIR), TakeUpJob { id, resource });
        });
        tasks.spawn(handover.clone().run(heartbeat.watch()));
        tasks.spawn(systemd::feed_watchdog(heartbeat.counter(), stop.clone()));
        handover.become_state(ControllerState::Active).await?;
        tasks.spawn(Arc::clone(&pki).run(stop.clone()));
        let callbacks: Arc<dyn CallbackSink> =
            Arc::new(Callbacks { agents: Arc::clone(&agents), bus: Arc::clone(&bus) });
        let gateway = api::Server::start(api::Parts {
            config,
            bus: Arc::clone(&bus),
            db: db.clone(),
            clock,
            pki,
            agents,
            callbacks,
            metrics,
        })
        .await
        .map_err(|e| Error::Api(e.into()))?;
        tasks.spawn(services::controller::tell_of_events(context.clone(), stop.clone()));
        tasks.spawn(handover::follow_broker(context.clone(), stop.clone()));
        reconcile::spawn(reconcile::all(&context), &tasks, &stop);
        services::host::start_pings(context.clone(), &tasks, stop.clone())
            .map_err(|source| Error::Io { path: "the thread of the pings".into(), source })?;
        Ok(Self { db, bus, context, handover, gateway, heartbeat, tasks, stop, fenced, _lock: lock })
    }

    /// Where the API listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.gateway.address()
    }

    /// The bus, for tests and benchmarks.
    #[must_use]
    pub const fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// What the services have, for tests and benchmarks.
    #[must_use]
    pub const fn context(&self) -> &Context {
        &self.context
    }

    /// Resolves when this controller must not act any more.
    pub async fn fenced(&self) {
        self.fenced.cancelled().await;
    }

    /// Stops in order: the share of the ring goes to the others, no new requests, running ones drained,
    /// jobs left where they are, the ring left.
    pub async fn shutdown(self) {
        let engine = &self.context.engine;
        let idle = async {
            while engine.in_lanes() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let ring = &self.handover.ring;
        if ring.members().iter().any(|member| *member != ring.me()) {
            let drained = async {
                self.handover.become_state(ControllerState::Draining).await?;
                self.bus.until_let_go().await;
                Ok::<_, shared::Error>(())
            };
            match tokio::time::timeout(DRAIN, drained).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = error.chain(), "this controller could not drain"),
                Err(_) => tracing::warn!("this controller did not drain in time; the others wait until it is gone"),
            }
        }
        self.gateway.shutdown().await;
        self.stop.cancel();
        let (me, joined) = (ring.me(), self.handover.joined);
        // Jobs stop at their next wait; one that does not is cut off and resumed at the next start.
        if tokio::time::timeout(DRAIN, idle).await.is_err() {
            tracing::warn!(jobs = engine.in_lanes(), "jobs were cut off; they go on at the next start");
        }
        drop(self.heartbeat);
        let left = self.db.write(move |tx| Box::pin(async move { db::controller::leave(tx, me, joined).await }));
        match tokio::time::timeout(DRAIN, left).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "this controller could not leave the ring; others notice by its heartbeat");
            }
            Err(_) => tracing::warn!(
                "the database does not answer; others notice by its heartbeat that this controller is gone"
            ),
        }
        // What the last jobs appended may have been told of by nobody any more.
        self.bus.publish(&Cx::system(Duration::from_secs(10)), &EventsAppended {});
        // Nobody sends here any more: what is kept for this controller goes.
        self.bus.close().await;
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(10), self.db.close()).await.is_err() {
            tracing::warn!("the database did not close in time");
        }
    }
}

/// The way to the other controllers, and what comes from there.
async fn transport(
    config: &Config,
    me: ControllerId,
    registry: &Registry,
    clock: &Clock,
) -> (Arc<dyn Transport>, mpsc::Receiver<Vec<u8>>) {
    let Some(broker) = config.bus.broker() else {
        let (transport, inbox) = LocalTransport::new(me, config.bus.max_per_service);
        return (Arc::new(transport), inbox);
    };
    let (transport, inbox) = RabbitTransport::start(broker, me, registry.service_names(), clock.clone());
    // A controller that starts without the broker serves what it owns.
    if !transport.wait_connected(BROKER).await {
        tracing::warn!("starting without the message broker");
    }
    (transport, inbox)
}

/// The identity of the controller of this data folder, made at its first start: with it, a restart
/// gives it the same share of the ring and the same queues.
fn identity(dir: &Path) -> Result<ControllerId, Error> {
    let path = dir.join("controller-id");
    let io = |source| Error::Io { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| {
            io(std::io::Error::other("it holds no id: remove it, and this controller joins as a new one"))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = ControllerId::new();
            std::fs::write(&path, format!("{id}\n")).map_err(io)?;
            Ok(id)
        }
        Err(error) => Err(io(error)),
    }
}

/// Sends spans to the collector that is configured, if there is one.
fn export_spans(config: &Config, me: ControllerId, tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), Error> {
    if config.tracing.otlp_endpoint.is_empty() {
        return Ok(());
    }
    let options = trace::Options {
        endpoint: config.tracing.otlp_endpoint.clone(),
        sample: config.tracing.sample,
        service: "kring-controller",
        instance: me.to_string(),
        version: env!("CARGO_PKG_VERSION"),
    };
    if let Some(exporter) = trace::start(options)? {
        tasks.spawn(exporter.run(stop.clone()));
    }
    Ok(())
}

/// Joins under a new generation, which is answered; what is written from then on is refused when
/// this controller is no member any more. One that was killed a moment ago may still count as a member:
/// then its last life is waited for. Who lives on after that is another controller with its identity.
async fn join(db: &Db, me: ControllerId, config: &Config) -> Result<u64, Error> {
    let (address, begin, mut told) = (config.callback_base(), Instant::now(), false);
    loop {
        let address = address.clone();
        let joined = db.write(move |tx| {
            Box::pin(async move { db::controller::join(tx, me, &address, env!("CARGO_PKG_VERSION")).await })
        });
        match joined.await {
            Ok(joined) => {
                db.write_as(me, joined);
                return Ok(joined);
            }
            Err(db::Error::Refused(error)) if error.code == Code::Conflict && begin.elapsed() < LAST_LIFE => {
                if !told {
                    tracing::info!(
                        error = error.message,
                        "the last life of this controller still counts as a member: waiting until it is over"
                    );
                }
                told = true;
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes the data folder, which holds secrets, for this user alone.
fn make_private(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Makes another token of the admin account and answers its secret. The controller may be running.
pub async fn new_admin_token(config: &Config) -> Result<String, Error> {
    let db = open_db(config, &TaskTracker::new()).await?;
    let secret = services::account::new_admin_token(&db, &Clock::default()).await?;
    db.close().await;
    Ok(secret)
}

async fn open_db(config: &Config, tasks: &TaskTracker) -> Result<Db, Error> {
    let url = config.database_url();
    let shown = url.split('@').next_back().unwrap_or_default().to_string();
    Db::open(&url, tasks).await.map_err(|source| Error::Database { url: shown, source: Box::new(source) })
}

/// Takes the data folder for this process.
fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let path = dir.join("lock");
    let io = |source| Error::Io { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Locked(dir.to_path_buf()))?;
    lock.set_len(0).map_err(io)?;
    writeln!(lock, "{}", std::process::id()).map_err(io)?;
    Ok(lock)
}
