//! Starts and stops an agent: what `kring-agent run` does, and tests with a hypervisor of their own.
//!
//! At the stop the listener closes first, then running tasks get their grace, then they are
//! cancelled, then everything that was spawned is waited for. Guests and networks go on.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use shared::wire::event::AgentEvent;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::app::{App, boot_id};
use crate::config::Config;
use crate::controller::{Client, Events};
use crate::identity::{self, Store};
use crate::libvirt::Hypervisor;
use crate::network::Networks;
use crate::storage::images::Images;
use crate::task::Tasks;
use crate::{facts, http, systemd};

/// How long spawned work may take to end after it was cancelled.
const LAST_WAIT: Duration = Duration::from_secs(20);

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder cannot be made or written to.
    #[error("the folder {path} cannot be used")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another agent uses the data folder.
    #[error("another agent runs with the data folder {0}: stop it first, or give this one its own --data-dir")]
    Running(PathBuf),
    /// The host has not joined, or its files are damaged.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The kernel does not tell its boot id.
    #[error("the kernel's boot id cannot be read")]
    BootId(#[source] std::io::Error),
    /// The image cache cannot be used.
    #[error("the image cache cannot be used: {}", .0.chain())]
    Images(shared::Error),
    /// Spans cannot be exported.
    #[error(transparent)]
    Tracing(#[from] trace::export::Error),
    /// The port cannot be listened on.
    #[error("the agent cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Held while an agent, a join or a purge works with a data folder: only one at a time does.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "it is held, and let go when it is dropped")] Flock<fs::File>);

/// Makes the data folder and claims it.
///
/// # Errors
/// `Running` when it is claimed, `Folder`.
pub fn claim(data_dir: &Path) -> Result<Claim, Error> {
    let failed = |source| Error::Folder { path: data_dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(data_dir).map_err(failed)?;
    let file = fs::OpenOptions::new().create(true).append(true).open(data_dir.join("lock")).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Claim(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::Running(data_dir.to_owned())),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// An agent that runs.
pub struct Running {
    /// What it consists of.
    pub app: Arc<App>,
    /// Where it listens.
    pub address: SocketAddr,
    _claim: Claim,
}

/// Starts an agent with a hypervisor.
///
/// # Errors
/// See [`Error`].
pub async fn start(config: Config, hypervisor: Arc<dyn Hypervisor>) -> Result<Running, Error> {
    let claim = claim(&config.agent.data_dir)?;
    fs::create_dir_all(&config.agent.run_dir)
        .map_err(|source| Error::Folder { path: config.agent.run_dir.clone(), source })?;
    let store = Store::new(&config.agent.data_dir);
    let identity = Arc::new(identity::Current::from_pointee(store.load(config.controller.timeout())?));
    let listener = TcpListener::bind(config.agent.listen).await;
    let listen = |source| Error::Listen { address: config.agent.listen, source };
    let listener = listener.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
    if !config.tracing.otlp_endpoint.is_empty() {
        let options = trace::Options {
            endpoint: config.tracing.otlp_endpoint.clone(),
            sample: 1.0,
            service: "kring-agent",
            instance: identity.load().host_id.to_string(),
            version: crate::app::VERSION,
        };
        if let Some(exporter) = trace::start(options)? {
            tracker.spawn(exporter.run(shutdown.clone()));
        }
    }
    let app = Arc::new(App {
        controller: Client::new(Arc::clone(&identity), &config.controller, store, Events::default()),
        images: Images::new(&config).map_err(Error::Images)?,
        networks: Networks::new(&config, tracker.clone(), shutdown.clone()),
        looks: Default::default(),
        checked: Default::default(),
        expected: Default::default(),
        tasks: Tasks::new(&config.agent),
        boot_id: boot_id().map_err(Error::BootId)?,
        agent_id: Uuid::new_v4(),
        identity,
        news: Mutex::default(),
        hypervisor,
        shutdown,
        tracker,
        config,
    });
    let (events, client) = (app.controller.events.clone(), app.controller.clone());
    events.push(AgentEvent::AgentStarted);
    app.tracker.spawn(events.run(client, app.shutdown.clone()));
    app.tracker.spawn(pass_events_on(Arc::clone(&app)));
    app.tracker.spawn(restore_networks(Arc::clone(&app)));
    app.tracker.spawn(look_after_networks(Arc::clone(&app)));
    app.tracker.spawn(identity::renew::run(Arc::clone(&app)));
    app.tracker.spawn(systemd::run(Arc::clone(&app)));
    app.tracker.spawn(http::serve(Arc::clone(&app), listener));
    if let Some(reason) = facts::kvm_closed_to_guests() {
        tracing::warn!(reason, "libvirt will be slow");
    }
    tracing::info!(%address, host.id = %app.identity.load().host_id, agent.id = %app.agent_id, "the agent serves");
    systemd::ready(&app);
    Ok(Running { app, address, _claim: claim })
}

impl Running {
    /// Stops the agent in order and waits until all of it has ended.
    pub async fn stop(self) {
        let app = self.app;
        systemd::stopping();
        app.shutdown.cancel();
        let grace = Duration::from_secs(app.config.agent.stop_grace_s);
        let idle = async {
            while app.tasks.active() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(grace, idle).await.is_err() {
            tracing::warn!(tasks = app.tasks.active(), "tasks are cancelled: their grace is over");
        }
        app.tasks.cancel_all();
        app.tracker.close();
        if tokio::time::timeout(LAST_WAIT, app.tracker.wait()).await.is_err() {
            tracing::warn!(left = app.tracker.len(), "some work did not end; it is left behind");
        }
        tracing::info!("the agent has stopped");
    }
}

/// Passes what libvirt tells on to the controllers. When it comes too fast for this loop some of it
/// is lost: the digest in the next ping tells the controller to compare.
async fn pass_events_on(app: Arc<App>) {
    let mut events = app.hypervisor.events();
    while let Some(next) = app.shutdown.run_until_cancelled(events.recv()).await {
        match next {
            Ok(event) => app.pass_on(event),
            Err(RecvError::Lagged(lost)) => tracing::warn!(lost, "events of libvirt were lost"),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Takes up the networks of the guests that are here, as soon as libvirt answers; without it those
/// that are kept on disk at least.
async fn restore_networks(app: Arc<App>) {
    let mut changes = app.hypervisor.changes();
    let patience = tokio::time::sleep(Duration::from_secs(app.config.libvirt.call_timeout_s));
    tokio::pin!(patience);
    let mut restored_without = false;
    loop {
        if app.hypervisor.summary().is_ok()
            && let Ok(identities) = app.hypervisor.identities().await
        {
            app.networks.restore(Some(&identities), &app.shutdown).await;
            return;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = app.shutdown.cancelled() => return,
            () = &mut patience, if !restored_without => {
                restored_without = true;
                app.networks.restore(None, &app.shutdown).await;
            }
        }
    }
}

async fn look_after_networks(app: Arc<App>) {
    let every = Duration::from_secs(app.config.network.repair_s.max(1));
    app.networks.look_after(every, &app.shutdown).await;
}

#[cfg(test)]
mod fake;
#[cfg(test)]
pub(crate) mod harness;
#[cfg(test)]
mod tests;
