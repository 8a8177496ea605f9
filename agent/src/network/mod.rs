//! Networks of guests on this host.
//!
//! ```text
//!  VM ── tap ──┐                       namespace kring-<x>
//!  VM ── tap ──┤ bridge kr-<x> ── veth ── eth0: service address (DHCP, DNS by dnsmasq)
//!              │ (nat: gateway address)   lo:   169.254.169.254 (metadata service of the agent)
//!              └── nftables table kring ── the world
//! ```
//!
//! `<x>` is the end of the network's id. Everything is made by [`Networks::ensure`], which repairs
//! what is missing, and outlives the agent; [`Networks::restore`] takes it up again after a restart
//! of the agent or the host, and [`Networks::look_after`] brings back what is lost meanwhile. The data
//! folder keeps specifications and leases, see [`files`].

pub mod bridge;
mod detour;
pub mod dnsmasq;
mod error;
pub mod files;
mod lease;
pub mod metadata;
pub mod namespace;
pub mod nat;
mod repair;
mod restore;
mod token;
mod tools;
mod uplink;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::api::network::NetworkKind;
use shared::id::{NetworkId, NicId};
use shared::wire::network::NetworkSpec;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::error::Error;
pub use self::tools::Tools;

use self::bridge::Names;
use self::dnsmasq::Dnsmasq;
use self::files::{NetworkDir, Record};
use self::metadata::{Addresses, Service};
use self::namespace::Namespace;
use self::token::Tokens;
use crate::config::Config;

/// Where guests look for their metadata.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Names of links that are tried before a host counts as full of collisions.
const ATTEMPTS: u32 = 64;

/// The networks of this host.
#[derive(Debug)]
pub struct Networks {
    data_dir: PathBuf,
    run_dir: PathBuf,
    dns: Vec<Ipv4Addr>,
    limit: Duration,
    tokens: Arc<Tokens>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Held while anything is changed: the rules of all networks are one table.
    live: Mutex<HashMap<NetworkId, Live>>,
    /// Cards whose leases are from an earlier life of the agent and were not asked for since.
    inherited: std::sync::Mutex<HashSet<NicId>>,
}

/// What this process has of a network.
#[derive(Debug)]
struct Live {
    addresses: Addresses,
    listener: Option<Listener>,
}

#[derive(Debug)]
struct Listener {
    namespace: namespace::Identity,
    stop: CancellationToken,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// All parts of one network.
struct Parts {
    dir: NetworkDir,
    names: Names,
    namespace: Namespace,
    dnsmasq: Dnsmasq,
}

impl Networks {
    /// The networks of a host. Metadata is served by tasks of `tracker` until `stop`.
    #[must_use]
    pub fn new(config: &Config, tracker: TaskTracker, stop: CancellationToken) -> Self {
        let v4 = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        };
        let dirs = files::all(&config.agent.data_dir.join("networks")).unwrap_or_default();
        let leases = dirs.iter().flat_map(|(_, dir)| dir.all_leases().unwrap_or_default());
        Self {
            inherited: std::sync::Mutex::new(leases.map(|lease| lease.nic_id).collect()),
            data_dir: config.agent.data_dir.clone(),
            run_dir: config.agent.run_dir.clone(),
            dns: config.network.dns.iter().filter_map(v4).collect(),
            limit: Duration::from_secs(config.network.command_timeout_s.max(1)),
            tokens: Arc::default(),
            tracker,
            stop,
            live: Mutex::default(),
        }
    }

    fn inherited(&self) -> std::sync::MutexGuard<'_, HashSet<NicId>> {
        self.inherited.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn tools<'a>(&self, cancel: &'a CancellationToken) -> Tools<'a> {
        Tools { cancel, limit: self.limit }
    }

    fn dir(&self) -> PathBuf {
        self.data_dir.join("networks")
    }

    fn network_dir(&self, network_id: NetworkId) -> NetworkDir {
        NetworkDir(self.dir().join(network_id.to_string()))
    }

    fn parts(&self, network_id: NetworkId, suffix: &str) -> Parts {
        let dir = self.network_dir(network_id);
        let names = Names { suffix: suffix.to_string() };
        let namespace = Namespace::new(self.run_dir.join("netns").join(names.namespace()));
        let dnsmasq = Dnsmasq::new(&dir, &namespace);
        Parts { dir, names, namespace, dnsmasq }
    }

    /// Sets a network up, and repairs what is missing. Returns the name of its bridge.
    ///
    /// # Errors
    /// See [`Error`]; what was made until then stays, for the next attempt or [`Networks::delete`].
    pub async fn ensure(&self, spec: &NetworkSpec, cancel: &CancellationToken) -> Result<String, Error> {
        let mut live = self.live.lock().await;
        self.ensure_locked(&mut live, spec, cancel).await
    }

    async fn ensure_locked(
        &self,
        live: &mut HashMap<NetworkId, Live>,
        spec: &NetworkSpec,
        cancel: &CancellationToken,
    ) -> Result<String, Error> {
        let lacks = match spec.kind {
            NetworkKind::Nat => spec.gateway.is_none().then_some("a gateway"),
            NetworkKind::Bridged => spec.uplink.is_none().then_some("an uplink"),
            NetworkKind::Isolated => None,
        };
        if let Some(what) = lacks {
            return Err(Error::Incomplete { network_id: spec.network_id, what });
        }
        let tools = self.tools(cancel);
        let dir = self.network_dir(spec.network_id);
        let known = dir.record()?;
        let moved = known.as_ref().is_none_or(|known| known.spec != *spec || !known.complete);
        let suffix = match known {
            Some(record) => record.suffix,
            None => self.choose(spec.network_id, &tools).await?,
        };
        let parts = self.parts(spec.network_id, &suffix);
        let record = Record { spec: spec.clone(), suffix, complete: false };
        if moved {
            parts.dir.create()?;
            parts.dir.write_record(&record)?;
        }
        let fresh = !parts.namespace.exists();
        if fresh {
            // One that is left over runs in a namespace that nobody can enter any more.
            parts.dnsmasq.stop(&tools).await?;
            parts.namespace.ensure().await?;
        }
        bridge::ensure(spec, &parts.names, &parts.namespace, fresh, moved, &tools).await?;
        let upstream = dnsmasq::upstream(spec, &self.dns);
        let config = dnsmasq::config(spec, &parts.dir, parts.dnsmasq.pid_file(), &upstream, dnsmasq::user());
        parts.dnsmasq.ensure(&config, &parts.namespace, &tools, false).await?;
        nat::open_iptables(spec.kind, &parts.names.bridge(), &tools).await?;
        if spec.kind == NetworkKind::Nat {
            bridge::forward_ipv4()?;
            detour::open(spec, &parts.names, &tools).await?;
        }
        nat::apply(&self.records()?, &tools).await?;
        if spec.kind == NetworkKind::Bridged {
            nat::apply_bridged(&self.records()?, &tools).await?;
        }
        self.listen(live, spec.network_id, &parts).await?;
        if moved {
            parts.dir.write_record(&Record { complete: true, ..record })?;
        }
        Ok(parts.names.bridge())
    }

    /// The first name that nobody else has.
    async fn choose(&self, network_id: NetworkId, tools: &Tools<'_>) -> Result<String, Error> {
        let taken: Vec<String> = self.records()?.into_iter().map(|r| r.suffix).collect();
        for attempt in 0..ATTEMPTS {
            let names = Names::choice(network_id, attempt);
            let owner = bridge::owner(&names.bridge(), tools).await?;
            let free = owner.is_none_or(|owner| owner == bridge::alias(network_id));
            if free && !taken.contains(&names.suffix) {
                return Ok(names.suffix);
            }
        }
        Err(Error::NoName(network_id))
    }

    fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for (_, dir) in files::all(&self.dir())? {
            records.extend(dir.record()?);
        }
        records.sort_by(|a, b| a.suffix.cmp(&b.suffix));
        Ok(records)
    }

    /// Serves metadata in a network, unless that is done in the very same namespace.
    async fn listen(
        &self,
        live: &mut HashMap<NetworkId, Live>,
        network_id: NetworkId,
        parts: &Parts,
    ) -> Result<(), Error> {
        let state = match live.entry(network_id) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let leases = parts.dir.all_leases()?.into_iter().map(|l| (l.ip, l.vm_id)).collect();
                entry.insert(Live { addresses: Arc::new(std::sync::RwLock::new(leases)), listener: None })
            }
        };
        let Some(namespace) = parts.namespace.identity() else { return Err(Error::Unknown(network_id)) };
        if state.listener.as_ref().is_some_and(|l| l.namespace == namespace) {
            return Ok(());
        }
        state.listener = None;
        let listener = metadata::bind(&parts.namespace).await?;
        let stop = self.stop.child_token();
        let service = Service {
            addresses: Arc::clone(&state.addresses),
            data_dir: self.data_dir.clone(),
            tokens: Arc::clone(&self.tokens),
        };
        self.tracker.spawn(metadata::serve(listener, service, self.tracker.clone(), stop.clone()));
        state.listener = Some(Listener { namespace, stop });
        Ok(())
    }

    /// Takes a network down; a success when it is not there. Whether a domain still uses it is the
    /// caller's question.
    ///
    /// # Errors
    /// See [`Error`]; what was left can be taken down by the next attempt.
    pub async fn delete(&self, network_id: NetworkId, cancel: &CancellationToken) -> Result<(), Error> {
        let mut live = self.live.lock().await;
        self.delete_locked(&mut live, network_id, cancel).await
    }

    async fn delete_locked(
        &self,
        live: &mut HashMap<NetworkId, Live>,
        network_id: NetworkId,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let tools = self.tools(cancel);
        live.remove(&network_id);
        let dir = self.network_dir(network_id);
        let Some(record) = dir.record()? else { return Ok(dir.remove()?) };
        let parts = self.parts(network_id, &record.suffix);
        parts.dnsmasq.stop(&tools).await?;
        bridge::remove(&parts.names, &tools).await?;
        detour::close(&parts.names, &tools).await?;
        parts.namespace.remove()?;
        nat::close_iptables(&parts.names.bridge(), &tools).await?;
        let others: Vec<Record> = self.records()?.into_iter().filter(|r| r.spec.network_id != network_id).collect();
        nat::apply(&others, &tools).await?;
        if record.spec.kind == NetworkKind::Bridged {
            nat::apply_bridged(&others, &tools).await?;
        }
        // Last: while the record is there the network counts as there, and is taken down again.
        Ok(parts.dir.remove()?)
    }

    /// The bridge of a network that is set up.
    ///
    /// # Errors
    /// `Unknown` when it is not.
    pub fn bridge_of(&self, network_id: NetworkId) -> Result<String, Error> {
        let record = self.network_dir(network_id).record()?.ok_or(Error::Unknown(network_id))?;
        Ok(Names { suffix: record.suffix }.bridge())
    }

    /// The networks that are set up.
    ///
    /// # Errors
    /// When the data folder cannot be read.
    pub fn list(&self) -> Result<Vec<NetworkId>, Error> {
        Ok(files::all(&self.dir())?.into_iter().map(|(id, _)| id).collect())
    }
}
