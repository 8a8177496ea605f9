//! A light look at the networks now and then: what has ended or was removed by itself (a dnsmasq that
//! was killed, rules that another program has flushed) comes back without a command.
//!
//! A look costs a few reads of `/proc` for each network and one run of `nft` for all. A network that a
//! command is still setting up, or has failed to, is left to the next command.

use std::collections::HashSet;
use std::time::Duration;

use shared::api::network::NetworkKind;
use shared::id::NetworkId;
use tokio_util::sync::CancellationToken;

use super::files::Record;
use super::{Error, Networks, bridge, nat, uplink};

impl Networks {
    /// Looks after the networks every so often, until `stop`.
    pub async fn look_after(&self, every: Duration, stop: &CancellationToken) {
        // One that cannot be repaired is told of once, not with every look.
        let mut failing = HashSet::new();
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            self.repair(&mut failing, stop).await;
        }
    }

    /// One look. `failing` are those that the last one could not repair.
    pub async fn repair(&self, failing: &mut HashSet<NetworkId>, cancel: &CancellationToken) {
        let records = match self.records() {
            Ok(records) => records,
            Err(error) => return tracing::warn!(%error, "the networks that are kept cannot be read"),
        };
        let whole: Vec<Record> = records.into_iter().filter(|r| r.complete).collect();
        if whole.is_empty() {
            return;
        }
        if let Err(error) = self.repair_rules(cancel).await {
            tracing::warn!(error = shared::Error::from(error).chain(), "the host's rules could not be looked at");
        }
        for record in whole {
            let network_id = record.spec.network_id;
            match self.repair_one(network_id, cancel).await {
                Ok(()) => drop(failing.remove(&network_id)),
                Err(_) if cancel.is_cancelled() => return,
                Err(error) if failing.insert(network_id) => {
                    let error = shared::Error::from(error).chain();
                    tracing::error!(network.id = %network_id, error, "a network could not be repaired; it is tried again");
                }
                Err(_) => {}
            }
        }
    }

    async fn repair_rules(&self, cancel: &CancellationToken) -> Result<(), Error> {
        let tools = self.tools(cancel);
        let _alone = self.live.lock().await;
        if nat::is_applied(&tools).await? {
            return Ok(());
        }
        tracing::warn!("somebody has removed the host's rules for guests' networks; they are put in force again");
        let records = self.records()?;
        nat::apply(&records, &tools).await?;
        if records.iter().any(|r| r.spec.kind == NetworkKind::Bridged) {
            nat::apply_bridged(&records, &tools).await?;
        }
        Ok(())
    }

    async fn repair_one(&self, network_id: NetworkId, cancel: &CancellationToken) -> Result<(), Error> {
        let mut live = self.live.lock().await;
        // It may have been changed or taken down while the lock was waited for.
        let Some(record) = self.network_dir(network_id).record()?.filter(|r| r.complete) else { return Ok(()) };
        let parts = self.parts(network_id, &record.suffix);
        let missing = if !bridge::exists(&parts.names.bridge()) {
            "bridge"
        } else if !parts.namespace.exists() {
            "namespace"
        } else if parts.dnsmasq.running().is_none() {
            "dnsmasq"
        } else if record.spec.kind == NetworkKind::Bridged && uplink::plugged(&record.spec, &parts.names).is_none() {
            "uplink"
        } else {
            return Ok(());
        };
        tracing::warn!(network.id = %network_id, missing, "a network has lost a part; it is repaired");
        self.ensure_locked(&mut live, &record.spec, cancel).await.map(|_| ())
    }
}
