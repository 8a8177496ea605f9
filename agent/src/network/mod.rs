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
//! of the agent or the host. The data folder keeps specifications and leases, see [`files`].

pub mod bridge;
mod detour;
pub mod dnsmasq;
pub mod files;
pub mod metadata;
pub mod namespace;
pub mod nat;
mod token;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::Code;
use shared::api::network::NetworkKind;
use shared::id::{NetworkId, NicId, VmId};
use shared::wire::network::NetworkSpec;
use shared::wire::vm::NicSpec;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::bridge::Names;
use self::dnsmasq::Dnsmasq;
use self::files::{FileError, Lease, NetworkDir, Record};
use self::metadata::{Addresses, Service};
use self::namespace::Namespace;
use self::token::Tokens;
use crate::cloud_init::safe_hostname;
use crate::cmd::{self, Cmd};
use crate::config::Config;
use crate::libvirt::metadata::Identity;

/// Where guests look for their metadata.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Names of links that are tried before a host counts as full of collisions.
const ATTEMPTS: u32 = 64;

/// Why a network could not be set up or taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program failed.
    #[error(transparent)]
    Program(#[from] cmd::Error),
    /// A file could not be worked on.
    #[error(transparent)]
    File(#[from] FileError),
    /// What `ip` told cannot be read.
    #[error("what `ip` tells of the host's links cannot be read")]
    Ip(#[source] serde_json::Error),
    /// A namespace could not be worked on.
    #[error("the network namespace {path} could not be {doing}")]
    Namespace {
        /// What was being done.
        doing: &'static str,
        /// The namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A setting of the kernel could not be written.
    #[error("the kernel setting {name} could not be written")]
    Sysctl {
        /// The setting.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// All names that were tried are taken.
    #[error("every link name that was tried for network {0} is taken on this host")]
    NoName(NetworkId),
    /// A hardware address is none.
    #[error("\"{0}\" is not a hardware address")]
    BadMac(String),
    /// An address lies outside of its network.
    #[error("{ip} is not an address of the network {cidr}")]
    BadAddress {
        /// The address.
        ip: Ipv4Addr,
        /// The network.
        cidr: ipnet::Ipv4Net,
    },
    /// The network is not on this host.
    #[error("network {0} is not set up on this host")]
    Unknown(NetworkId),
    /// Something took too long.
    #[error("waited too long until {0}")]
    TooLong(&'static str),
}

impl From<Error> for shared::Error {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Program(error) => return error.into(),
            Error::File(error) => return error.into(),
            Error::BadMac(_) | Error::BadAddress { .. } => Code::InvalidRequest,
            Error::Unknown(_) => Code::NotFound,
            Error::NoName(_) => Code::Exhausted,
            Error::TooLong(_) => Code::DeadlineExceeded,
            Error::Ip(_) | Error::Namespace { .. } | Error::Sysctl { .. } => Code::HostFailed,
        };
        let wire = Self::new(code, error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => wire.caused_by(source),
            None => wire,
        }
    }
}

/// How programs are run for one command: with its cancellation, within the configured time.
#[derive(Clone, Copy, Debug)]
pub struct Tools<'a> {
    /// Kills what runs.
    pub cancel: &'a CancellationToken,
    /// How long one program may take.
    pub limit: Duration,
}

impl Tools<'_> {
    fn cmd(&self, program: &str) -> Cmd {
        Cmd::new(program).within(self.limit)
    }

    /// Waits until something outside of the agent has happened that nobody tells of.
    async fn until(&self, what: &'static str, done: impl Fn() -> bool) -> Result<(), Error> {
        let poll = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(self.limit, poll).await.map_err(|_| Error::TooLong(what))
    }
}

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

    /// Gives a card its address. Its network must be set up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_nic(&self, vm_id: VmId, hostname: &str, nic: &NicSpec) -> Result<(), Error> {
        let lease = Lease {
            vm_id,
            nic_id: nic.nic_id,
            mac: checked_mac(&nic.mac)?,
            ip: nic.ip,
            hostname: safe_hostname(hostname, vm_id),
        };
        if !nic.network.cidr.contains(&nic.ip) {
            return Err(Error::BadAddress { ip: nic.ip, cidr: nic.network.cidr });
        }
        let network_id = nic.network.network_id;
        let live = self.live.lock().await;
        self.inherited().remove(&lease.nic_id);
        let dir = self.network_dir(network_id);
        let (Some(state), Some(record)) = (live.get(&network_id), dir.record()?) else {
            return Err(Error::Unknown(network_id));
        };
        // An address that moved to another VM: the earlier owner's lease must not answer for it.
        let mut stale = false;
        for other in dir.all_leases()?.into_iter().filter(|l| l.ip == lease.ip && l.nic_id != lease.nic_id) {
            stale |= dir.remove_lease(other.nic_id)?;
        }
        stale |= dir.write_lease(&lease)?;
        if let Ok(mut addresses) = state.addresses.write() {
            addresses.retain(|ip, vm| *vm != vm_id || *ip == lease.ip || keeps(&dir, vm_id, *ip));
            addresses.insert(lease.ip, vm_id);
        }
        if stale {
            self.parts(network_id, &record.suffix).dnsmasq.reload();
        }
        Ok(())
    }

    /// Takes the addresses of a VM's cards back, in every network; a success when it has none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_vm(&self, vm_id: VmId) -> Result<(), Error> {
        self.remove_leases(|lease| lease.vm_id == vm_id).await
    }

    /// Takes the address of one card back; a success when it has none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_nic(&self, nic_id: NicId) -> Result<(), Error> {
        self.remove_leases(|lease| lease.nic_id == nic_id).await
    }

    async fn remove_leases(&self, which: impl Fn(&Lease) -> bool) -> Result<(), Error> {
        let live = self.live.lock().await;
        for (network_id, dir) in files::all(&self.dir())? {
            let gone: Vec<Lease> = dir.all_leases()?.into_iter().filter(|l| which(l)).collect();
            for lease in &gone {
                dir.remove_lease(lease.nic_id)?;
                if let Some(Ok(mut addresses)) = live.get(&network_id).map(|state| state.addresses.write()) {
                    addresses.remove(&lease.ip);
                }
            }
            if let (false, Some(record)) = (gone.is_empty(), dir.record()?) {
                self.parts(network_id, &record.suffix).dnsmasq.reload();
            }
        }
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
        // Last: while the record is there the network counts as there, and is taken down again.
        Ok(parts.dir.remove()?)
    }

    /// The networks that are set up.
    ///
    /// # Errors
    /// When the data folder cannot be read.
    pub fn list(&self) -> Result<Vec<NetworkId>, Error> {
        Ok(files::all(&self.dir())?.into_iter().map(|(id, _)| id).collect())
    }

    /// Takes up every network after a start of the agent: those that are kept and those that domains
    /// of Kring have cards in. Leases of VMs that libvirt does not know any more go. `identities` is
    /// `None` while libvirt does not answer: then every lease stays. One network that fails does not
    /// keep the others back.
    pub async fn restore(&self, identities: Option<&[Identity]>, cancel: &CancellationToken) {
        let complete = identities.is_some();
        let identities = identities.unwrap_or_default();
        let mut specs: HashMap<NetworkId, NetworkSpec> = HashMap::new();
        for nic in identities.iter().flat_map(|identity| &identity.nics) {
            specs.insert(nic.network.network_id, nic.network.clone());
        }
        match self.records() {
            // What was last commanded is newer than what a domain was defined with.
            Ok(records) => specs.extend(records.into_iter().map(|r| (r.spec.network_id, r.spec))),
            Err(error) => tracing::error!(error = %error, "the networks that are kept cannot be read"),
        }
        for spec in specs.values() {
            if let Err(error) = self.ensure(spec, cancel).await {
                let error = shared::Error::from(error).chain();
                tracing::error!(network.id = %spec.network_id, error, "a network could not be taken up again");
            }
        }
        let known = |lease: &Lease| identities.iter().any(|i| i.vm_id == lease.vm_id);
        // A VM that is being made right now has a lease before it has a domain.
        let stale = |lease: &Lease| self.inherited().contains(&lease.nic_id) && !known(lease);
        if complete && let Err(error) = self.remove_leases(stale).await {
            tracing::error!(error = %error, "leases of VMs that are gone could not be removed");
        }
        for identity in identities {
            for nic in &identity.nics {
                if let Err(error) = self.add_nic(identity.vm_id, &identity.hostname, nic).await {
                    tracing::error!(vm.id = %identity.vm_id, error = %error, "a lease could not be written");
                }
            }
        }
    }

    /// Removes every network of this agent, and every bridge of Kring in the namespace that it runs in.
    ///
    /// # Errors
    /// The first one; the rest is removed all the same.
    pub async fn purge(&self, cancel: &CancellationToken) -> Result<(), Error> {
        let mut live = self.live.lock().await;
        let mut result = Ok(());
        for (network_id, _) in files::all(&self.dir())? {
            let deleted = self.delete_locked(&mut live, network_id, cancel).await;
            result = result.and(deleted);
        }
        // What is left of networks that nobody has a record of any more.
        let tools = self.tools(cancel);
        for (name, _) in bridge::all(&tools).await? {
            if let Some(suffix) = name.strip_prefix("kr-") {
                let names = Names { suffix: suffix.into() };
                result = result.and(bridge::remove(&names, &tools).await);
                result = result.and(detour::close(&names, &tools).await);
                result = result.and(nat::close_iptables(&name, &tools).await);
            }
        }
        for path in files::entries(&self.run_dir.join("netns"))? {
            if path.extension().is_some_and(|e| e == "pid") {
                dnsmasq::stop_leftover(&path, &self.dir(), &tools).await?;
            } else {
                result = result.and(Namespace::new(path).remove());
            }
        }
        result.and(nat::apply(&[], &tools).await)
    }
}

/// Whether a VM has a lease of this address in the network (it may have two cards there).
fn keeps(dir: &NetworkDir, vm_id: VmId, ip: Ipv4Addr) -> bool {
    dir.all_leases().is_ok_and(|leases| leases.iter().any(|l| l.vm_id == vm_id && l.ip == ip))
}

/// A hardware address as six pairs in lower case: it ends up in dnsmasq's files.
fn checked_mac(mac: &str) -> Result<String, Error> {
    let pairs: Vec<&str> = mac.split(':').collect();
    let good = pairs.len() == 6 && pairs.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
    if good { Ok(mac.to_ascii_lowercase()) } else { Err(Error::BadMac(mac.chars().take(40).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_checked_before_it_reaches_a_file() {
        assert_eq!(checked_mac("52:54:00:AB:cd:ef").unwrap(), "52:54:00:ab:cd:ef");
        for bad in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "52:54:00:ab:cd:e,", "52:54:00:ab:cd:+f\n"] {
            assert!(checked_mac(bad).is_err(), "{bad}");
        }
    }
}
