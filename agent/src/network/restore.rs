//! Taking networks up again after a restart, and taking all of them down for good.

use std::collections::HashMap;

use shared::id::NetworkId;
use shared::wire::network::NetworkSpec;
use tokio_util::sync::CancellationToken;

use super::bridge::Names;
use super::files::Lease;
use super::namespace::Namespace;
use super::{Error, Networks, bridge, detour, dnsmasq, files, nat};
use crate::libvirt::metadata::Identity;

impl Networks {
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
        result = result.and(nat::apply(&[], &tools).await);
        result.and(nat::apply_bridged(&[], &tools).await)
    }
}
