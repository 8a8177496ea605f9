//! A whole Kring for one test: a controller with a database and a folder of its own on a free port, and a
//! simulator that stands for its hosts.
//!
//! The controller runs in the test's process, or as the built program for tests that kill it
//! ([`Setup::process`]). SQLite and no broker by default; with `KRING_TEST_POSTGRES=postgres://…` each cluster gets
//! a database of its own on that server, and with `KRING_TEST_RABBIT=amqp://…` beside it every message
//! takes the way over that broker.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use controller::app::{App, Foundation};
use controller::clock::Clock;
use controller::config::Config;
use controller::workflow::Probe;
use reqwest::Method;
use shared::api::setting::{Setting, UpdateSetting};
use shared::time::Timestamp;
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;
use tokio::process::Child;

use crate::client::{Call, Client};
use crate::cmd;
use crate::sim::{Options, Sim};
use crate::snapshot::{Database, Snapshot};
use crate::wait::eventually;
use crate::world::World;

/// How a cluster is made.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Part of the commands, 0 to 1, that hosts answer by callback.
    pub deferred: f64,
    /// Processors and memory of hosts, when not the usual ones.
    pub host: Option<(u32, shared::units::Bytes)>,
    /// Lines of the controller's configuration file.
    pub config: String,
    /// Lines of its area `[api]`.
    pub api: String,
    /// Lines of its area `[bus]`.
    pub bus: String,
    /// How far the clock of the controller's machine is ahead, in milliseconds, when the controller runs in the
    /// test's process.
    pub clock_ahead_ms: i64,
    /// Whether the controller is a process of its own, which can be killed.
    pub process: bool,
    /// Address of this machine that the controller listens on, when not 127.0.0.1.
    pub address: Option<IpAddr>,
    /// A disk of this size, in memory, for what the controller keeps; needs root.
    pub disk: Option<shared::units::Bytes>,
}

/// The controller, as it runs now.
enum Running {
    No,
    Here(Box<App>),
    Process(Child),
}

/// A controller with its hosts. What is asked of [`World`] is asked of it.
pub struct Cluster {
    world: World,
    /// A look into the controller's database.
    pub database: Database,
    /// `https://127.0.0.1:PORT`
    pub url: String,
    controller: Running,
    process: bool,
    clock_ahead_ms: i64,
    probe: Option<Arc<dyn Probe>>,
    /// Before the folder, which it is in.
    _disk: Option<Disk>,
    folder: TempDir,
    postgres: Option<(String, String)>,
}

/// A disk in memory that is mounted while this lives.
struct Disk(PathBuf);

impl Disk {
    async fn mount(path: PathBuf, size: shared::units::Bytes) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&path)?;
        let size = format!("size={},mode=0700", size.0);
        let args = ["-t", "tmpfs", "-o", &size, "kring-test"].map(OsStr::new);
        cmd::run("mount".as_ref(), &[&args[..], &[path.as_os_str()]].concat()).await.context("mount")?;
        Ok(Self(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what is still open in it goes with its process.
        cmd::run_to_end("umount".as_ref(), &["-l".as_ref(), self.0.as_os_str()]);
    }
}

impl Deref for Cluster {
    type Target = World;
    fn deref(&self) -> &World {
        &self.world
    }
}

impl Cluster {
    /// A controller with hosts that answer at once.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Setup::default()).await
    }

    /// A controller and hosts like this.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_with(setup: Setup) -> anyhow::Result<Self> {
        log();
        let folder = tempfile::Builder::new().prefix("kring-it-").tempdir()?;
        let listen = cmd::free_address(setup.address.unwrap_or(Ipv4Addr::LOCALHOST.into()))?;
        let url = format!("https://{listen}");
        let disk = match setup.disk {
            Some(size) => Some(Disk::mount(folder.path().join("data"), size).await?),
            None => None,
        };
        let postgres = postgres(&folder).await?;
        let database_url = match &postgres {
            Some((_, url)) => url.clone(),
            None => controller::db::Db::sqlite_url(&folder.path().join("data")),
        };
        let mut setup = setup;
        if let (Some(_), Some(url)) = (&postgres, variable("KRING_TEST_RABBIT")) {
            setup.bus += &format!("\nurl = \"{url}\"\nloopback = \"broker\"\n");
        }
        std::fs::write(folder.path().join("controller.toml"), config(&folder, listen, &database_url, &setup))?;
        let api = init(&folder, &url, setup.process).await?;
        let mut options = Options { deferred: setup.deferred, ..Options::new(&url) };
        if let Some((cpus, memory)) = setup.host {
            (options.cpus, options.memory) = (cpus, memory);
        }
        let world = World::new(api, Arc::new(Sim::new(options)));
        let database = Database::open(&database_url).await?;
        let mut cluster = Self {
            world,
            database,
            url,
            controller: Running::No,
            process: setup.process,
            clock_ahead_ms: setup.clock_ahead_ms,
            probe: None,
            _disk: disk,
            folder,
            postgres,
        };
        cluster.run().await?;
        cluster.ground().await?;
        cluster.set("host.ping_interval", 0.2.into()).await?;
        Ok(cluster)
    }

    /// Starts the controller, after it was stopped or killed.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        let file = self.folder.path().join("controller.toml");
        if self.process {
            let program = cmd::program("kring-controller")?;
            let args = [OsStr::new("serve"), OsStr::new("--config"), file.as_os_str()];
            self.controller = Running::Process(cmd::spawn(program.as_os_str(), &args, &self.log_file())?);
        } else {
            let clock = Clock::beginning_at(Timestamp::now().plus_ms(self.clock_ahead_ms));
            let foundation = Foundation::open_at(Config::load(Some(&file), &[])?, clock).await?;
            let app = App::start(foundation).await?;
            if let Some(probe) = &self.probe {
                app.context().engine.set_probe(Arc::clone(probe));
            }
            self.controller = Running::Here(Box::new(app));
        }
        let log = self.log_file();
        eventually("the controller is ready", async || {
            if let Running::Process(child) = &mut self.controller
                && let Some(status) = child.try_wait()?
            {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                anyhow::bail!("the controller ended with {status}: {log}");
            }
            let ready = self.world.api.send(Call::new(Method::GET, "/readyz")).await?;
            anyhow::ensure!(ready.status == 200, "not ready: {}", ready.text);
            Ok(())
        })
        .await
    }

    /// Sets the clock of the controller's machine, for its next life.
    pub const fn set_clock_ahead_ms(&mut self, ms: i64) {
        self.clock_ahead_ms = ms;
    }

    /// Has a probe see every job pass, in this life of the controller and the next ones.
    pub fn set_probe(&mut self, probe: Arc<dyn Probe>) {
        if let Running::Here(app) = &self.controller {
            app.context().engine.set_probe(Arc::clone(&probe));
        }
        self.probe = Some(probe);
    }

    /// The controller, when it runs in this process.
    #[must_use]
    pub fn app(&self) -> Option<&App> {
        match &self.controller {
            Running::Here(app) => Some(app),
            Running::Process(_) | Running::No => None,
        }
    }

    /// The controller's configuration, which it reads when it starts.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("controller.toml")
    }

    /// Where the controller keeps what it must keep.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Configuration of the command line for this controller, as admin.
    #[must_use]
    pub fn cli_config(&self) -> PathBuf {
        self.folder.path().join("cli.toml")
    }

    /// What the controller has logged, when it is a process.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("controller.log")
    }

    /// Ends the controller: a process as `kill -9` does, one in this process in order.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        match std::mem::replace(&mut self.controller, Running::No) {
            Running::Here(app) => app.shutdown().await,
            Running::Process(mut child) => child.kill().await?,
            Running::No => {}
        }
        Ok(())
    }

    /// Ends the controller and starts it again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill().await?;
        self.run().await
    }

    /// Its database, when that is on a server.
    #[must_use]
    pub fn server_url(&self) -> Option<&str> {
        self.postgres.as_ref().map(|(_, url)| url.as_str())
    }

    /// Id of the controller's process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.controller {
            Running::Process(child) => child.id(),
            Running::Here(_) | Running::No => None,
        }
    }

    /// Whether the controller's process has ended by itself.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        match &mut self.controller {
            Running::Process(child) => Ok(child.try_wait()?.is_some()),
            Running::Here(_) => Ok(false),
            Running::No => Ok(true),
        }
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn set(&self, key: &str, value: serde_json::Value) -> anyhow::Result<()> {
        self.api.put::<Setting>(&format!("/v1/settings/{key}"), &UpdateSetting { value }).await?;
        Ok(())
    }

    /// What is in the database and on the hosts now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Snapshot::take(&self.database, &self.sim).await
    }

    /// Waits until everything is as it was `before`, but for caches, and checks all sums.
    ///
    /// # Errors
    /// Names what differs.
    pub async fn assert_clean(&self, before: &Snapshot) -> anyhow::Result<()> {
        let before = before.clone().without_caches();
        eventually("everything is as it was before", async || {
            let difference = self.snapshot().await?.without_caches().difference(&before);
            anyhow::ensure!(difference.is_empty(), "{}", difference.join("\n"));
            Ok(())
        })
        .await?;
        self.assert_consistent().await
    }

    /// Waits until no job is open and nothing is owed, then compares sums with rows and rows with hosts.
    ///
    /// # Errors
    /// Names what does not fit.
    pub async fn assert_consistent(&self) -> anyhow::Result<()> {
        self.database.at_rest(&self.sim).await
    }

    /// Stops everything and waits for it. Without it, all is killed when the cluster is dropped.
    ///
    /// # Errors
    /// When the database cannot be removed.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.sim.shutdown().await;
        self.kill().await?;
        if let Some((server, url)) = &self.postgres {
            let name = url.rsplit('/').next().unwrap_or_default();
            let mut connection = sqlx::AnyConnection::connect(server).await?;
            let text = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
            sqlx::query(AssertSqlSafe(text)).execute(&mut connection).await?;
        }
        Ok(())
    }
}

/// Makes what the controller keeps, and a client for it.
async fn init(folder: &TempDir, url: &str, process: bool) -> anyhow::Result<Client> {
    let (file, cli) = (folder.path().join("controller.toml"), folder.path().join("cli.toml"));
    if process {
        let program = cmd::program("kring-controller")?;
        let args =
            [OsStr::new("init"), "--config".as_ref(), file.as_os_str(), "--cli-config".as_ref(), cli.as_os_str()];
        cmd::run(program.as_os_str(), &args).await?;
        return Client::from_cli_config(&cli);
    }
    let foundation = Foundation::open(Config::load(Some(&file), &[])?).await?;
    let token = foundation.admin_token.clone().context("a new controller has a new token")?;
    Client::new(url, foundation.ca_pem(), Some(&token))
}

fn config(folder: &TempDir, listen: SocketAddr, database_url: &str, setup: &Setup) -> String {
    let data = folder.path().join("data");
    format!(
        "data_dir = \"{}\"\n[api]\nlisten = \"{listen}\"\nadvertise = [\"https://{listen}\"]\nnames = [\"{}\"]\n{}\n\
         [database]\nurl = \"{database_url}\"\n[bus]\n{}\n{}\n",
        data.display(),
        listen.ip(),
        setup.api,
        setup.bus,
        setup.config
    )
}

/// A variable of the environment that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A database of its own on the server that `KRING_TEST_POSTGRES` names: (server, database).
async fn postgres(folder: &TempDir) -> anyhow::Result<Option<(String, String)>> {
    let Some(server) = variable("KRING_TEST_POSTGRES") else { return Ok(None) };
    sqlx::any::install_default_drivers();
    let name = folder.path().file_name().map(|n| n.to_string_lossy().to_lowercase().replace('-', "_"));
    let name = name.context("the folder has a name")?.replace('.', "_");
    let mut connection = sqlx::AnyConnection::connect(&server).await?;
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&mut connection).await?;
    let base = server.rsplit_once('/').map_or(server.as_str(), |(base, _)| base);
    let url = format!("{base}/{name}");
    Ok(Some((server, url)))
}

/// Logs of this process go where the test runner shows them, when `RUST_LOG` asks for any.
fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // The second cluster of a process finds the first one's subscriber.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}
