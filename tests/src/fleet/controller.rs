//! One controller of a fleet: a process with a folder, a port and ways of its own.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};

use anyhow::Context;
use reqwest::Method;
use shared::id::ControllerId;
use tokio::process::Child;
use tokio::sync::Mutex;

use crate::client::{Call, Client};
use crate::cmd;
use crate::proxy::Proxy;
use crate::wait::eventually;

/// A controller as a process.
pub struct Controller {
    /// `c1`, `c2`, …
    pub name: String,
    /// `https://127.0.0.1:PORT`
    pub url: String,
    /// `https://127.0.0.1:PORT` of [`Self::from_others`], where hosts and other controllers are told to reach it.
    pub advertised: String,
    /// The way of hosts and other controllers to it.
    pub from_others: Arc<Proxy>,
    /// Its way to the message broker.
    pub to_broker: Arc<Proxy>,
    /// Its way to the database.
    pub to_database: Arc<Proxy>,
    folder: PathBuf,
    /// What it is started from.
    program: std::sync::Mutex<PathBuf>,
    client: OnceLock<Client>,
    process: Mutex<Option<Child>>,
}

impl Controller {
    /// The `n`th controller, which does not run yet. Its ways go to this broker and this database.
    pub(super) async fn new(
        n: usize,
        folder: PathBuf,
        program: &Path,
        broker: &str,
        database: &str,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let listen = cmd::free_address(Ipv4Addr::LOCALHOST.into())?;
        let (to_broker, broker) = way(broker).await?;
        let (to_database, database) = way(database).await?;
        let from_others = Proxy::start(&listen.to_string()).await?;
        let (url, advertised) = (format!("https://{listen}"), format!("https://{}", from_others.address));
        let config = format!(
            "data_dir = \"{}\"\n[api]\nlisten = \"{listen}\"\nadvertise = [\"{advertised}\"]\nnames = [\"127.0.0.1\"]\n\
             [database]\nurl = \"{database}\"\n[bus]\nurl = \"{broker}\"\n",
            folder.join("data").display()
        );
        std::fs::write(folder.join("controller.toml"), config)?;
        let controller = Self {
            name: format!("c{}", n + 1),
            url,
            advertised,
            from_others,
            to_broker,
            to_database,
            folder,
            program: std::sync::Mutex::new(program.to_owned()),
            client: OnceLock::new(),
            process: Mutex::default(),
        };
        controller.set_clock_ahead(0)?;
        Ok(controller)
    }

    pub(super) fn set_client(&self, client: Client) {
        // It is set once, by the fleet that makes this.
        let _ = self.client.set(client);
    }

    /// The API of this one, as admin.
    ///
    /// # Errors
    /// Before its fleet was started.
    pub fn api(&self) -> anyhow::Result<&Client> {
        self.client.get().context("the fleet has not started")
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.folder.join("controller.toml")
    }

    /// Has it run another version of the program from its next start on.
    pub fn set_program(&self, program: &Path) {
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) = program.to_owned();
    }

    /// Has it say, from its next start on, that it is reached at these addresses and no others.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn advertise(&self, all: &[&str]) -> anyhow::Result<()> {
        let (file, own) = (self.config_file(), format!("advertise = [\"{}\"]", self.advertised));
        let text = std::fs::read_to_string(&file)?;
        Ok(std::fs::write(file, text.replace(&own, &format!("advertise = {all:?}")))?)
    }

    /// Adds this to its configuration, which counts from its next start on.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn configure(&self, more: &str) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(self.config_file())?;
        Ok(std::fs::write(self.config_file(), format!("{text}\n{more}\n"))?)
    }

    /// Sets its wall clock, so many seconds ahead of the right time or behind it; it sees that within a second.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_clock_ahead(&self, seconds: i64) -> anyhow::Result<()> {
        let new = self.folder.join("clock.new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(std::fs::rename(new, self.clock_file())?)
    }

    fn clock_file(&self) -> PathBuf {
        self.folder.join("clock")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("controller.log")
    }

    /// What it has logged, in all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The last lines that it logged, without requests that went well.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().filter(|line| !line.contains("http.status=20")).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Its id, once it has been started.
    ///
    /// # Errors
    /// When it never was.
    pub fn id(&self) -> anyhow::Result<ControllerId> {
        let text = std::fs::read_to_string(self.folder.join("data/controller-id"))?;
        Ok(text.trim().parse()?)
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start(&self) -> anyhow::Result<()> {
        self.spawn().await?;
        self.ready().await
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// When there is no program, or it runs already.
    pub async fn spawn(&self) -> anyhow::Result<()> {
        let file = self.config_file();
        let args = [OsStr::new("serve"), OsStr::new("--config"), file.as_os_str()];
        let mut process = self.process.lock().await;
        anyhow::ensure!(process.is_none(), "{} runs already", self.name);
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        *process = Some(cmd::spawn_with_clock(program.as_os_str(), &args, &self.log_file(), &self.clock_file())?);
        Ok(())
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// When it does not in time, or has ended.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let client = self.client.get().context("a controller of a fleet has a client")?;
        eventually(&format!("{} is ready", self.name), async || {
            let ready = client.send(Call::new(Method::GET, "/readyz")).await?;
            anyhow::ensure!(ready.status == 200, "not ready: {}\n{}", ready.text, self.log_tail(20));
            Ok(())
        })
        .await
    }

    /// Starts it unless it runs, again when it ends while it starts because what it needs is away.
    ///
    /// # Errors
    /// When it does not come back in time.
    pub async fn ensure_running(&self) -> anyhow::Result<()> {
        let client = self.client.get().context("a controller of a fleet has a client")?;
        eventually(&format!("{} runs", self.name), async || {
            if !self.runs().await? {
                self.spawn().await?;
            }
            let answer = client.send(Call::new(Method::GET, "/readyz"));
            let ready = tokio::time::timeout(std::time::Duration::from_secs(10), answer).await??;
            anyhow::ensure!(ready.status == 200, "not ready: {}\n{}", ready.text, self.log_tail(20));
            Ok(())
        })
        .await
    }

    /// Whether its process runs, or is frozen.
    ///
    /// # Errors
    /// When the process cannot be asked.
    pub async fn runs(&self) -> anyhow::Result<bool> {
        let mut process = self.process.lock().await;
        if let Some(child) = process.as_mut()
            && child.try_wait()?.is_some()
        {
            *process = None;
        }
        Ok(process.is_some())
    }

    /// Waits until its process has ended by itself, as one does that finds that others act for it.
    ///
    /// # Errors
    /// When it goes on.
    pub async fn until_ended(&self) -> anyhow::Result<()> {
        eventually(&format!("{} ends by itself", self.name), async || {
            anyhow::ensure!(!self.runs().await?, "it runs:\n{}", self.log_tail(20));
            Ok(())
        })
        .await
    }

    /// Ends it as `kill -9` does, whatever it is doing.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub async fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.process.lock().await.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Ends it in order, and waits for that.
    ///
    /// # Errors
    /// When it does not end, or ends with an error.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let mut process = self.process.lock().await;
        let Some(mut child) = process.take() else { return Ok(()) };
        if let Some(pid) = child.id() {
            cmd::send_signal(pid, "-TERM").await?;
        }
        let ended = tokio::time::timeout(crate::wait::PATIENCE, child.wait()).await;
        let status = ended.with_context(|| format!("{} does not stop:\n{}", self.name, self.log_tail(20)))??;
        anyhow::ensure!(status.success(), "{} stopped with {status}:\n{}", self.name, self.log_tail(20));
        Ok(())
    }

    /// Stops the process as a debugger does, without ending it.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        let process = self.process.lock().await;
        let pid = process.as_ref().and_then(Child::id).context("it does not run")?;
        cmd::freeze(pid).await
    }

    /// Lets it go on after [`Self::freeze`].
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        match self.process.lock().await.as_ref().and_then(Child::id) {
            Some(pid) => cmd::send_signal(pid, "-CONT").await,
            None => Ok(()),
        }
    }
}

/// A proxy in front of the server of a URL, and the URL by way of it.
async fn way(url: &str) -> anyhow::Result<(Arc<Proxy>, String)> {
    let rest = url.split("://").nth(1).context("a URL has a scheme")?;
    let authority = rest.split('/').next().unwrap_or_default();
    let server = authority.rsplit('@').next().unwrap_or_default();
    let proxy = Proxy::start(server).await?;
    let by = url.replacen(server, &proxy.address.to_string(), 1);
    Ok((proxy, by))
}
