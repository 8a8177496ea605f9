//! Flow `network.delete`: mark → remove_from_hosts → forget.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::Result;
use shared::id::{AccountId, ClusterId, NetworkId, ResourceId};
use shared::name::Name;
use shared::wire::network::DeleteNetwork;
use uuid::Uuid;

use crate::db::{self, Tx};
use crate::services::{announce, on_hosts};
use crate::workflow::{At, Flow, Step, StepCx};

/// Removes a network that nobody is in.
pub(super) struct Delete;

/// Which network, and what is known of it once it is marked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    network_id: NetworkId,
    #[serde(default)]
    marked: Option<Marked>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Marked {
    cluster_id: ClusterId,
    account_id: AccountId,
    name: Name,
}

impl State {
    pub(super) const fn new(network_id: NetworkId) -> Self {
        Self { network_id, marked: None }
    }
}

impl Flow for Delete {
    const KIND: &'static str = "network.delete";
    const NOUN: &'static str = "network";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.network_id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Mark), Arc::new(RemoveFromHosts), Arc::new(Forget)]
    }
}

/// Lets no new card in.
struct Mark;

#[async_trait]
impl Step<State> for Mark {
    fn name(&self) -> &'static str {
        "mark"
    }

    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let network = db::network::close(tx, state.network_id).await?;
        state.marked =
            Some(Marked { cluster_id: network.cluster_id, account_id: network.account_id, name: network.name });
        Ok(())
    }

    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        db::network::reopen(tx, state.network_id).await
    }
}

/// Takes the bridge and its services away on every host that can be reached; the comparison of
/// inventories does it on the others when they are back.
struct RemoveFromHosts;

#[async_trait]
impl Step<State> for RemoveFromHosts {
    fn name(&self) -> &'static str {
        "remove_from_hosts"
    }

    async fn apply(&self, cx: &StepCx, state: &mut State) -> Result<()> {
        let Some(marked) = &state.marked else { return Ok(()) };
        let hosts = db::soon(async {
            let mut conn = cx.deps.db.read().await?;
            db::host::connected(&mut conn, marked.cluster_id).await
        })
        .await?;
        on_hosts(cx, hosts, &DeleteNetwork { network_id: state.network_id }).await
    }
}

struct Forget;

#[async_trait]
impl Step<State> for Forget {
    fn name(&self) -> &'static str {
        "forget"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        if db::network::delete(tx, state.network_id).await?
            && let Some(marked) = &state.marked
        {
            let content = json!({ "name": marked.name });
            announce(tx, state.network_id, "deleted", Some(marked.account_id), &content, at.now)?;
        }
        Ok(())
    }
}
