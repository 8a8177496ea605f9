//! `/v1/networks`: what VMs are connected to.

use std::sync::Arc;

use axum::extract::State;
use shared::api::job::{Job, JobRef};
use shared::api::network::{CreateNetwork as Body, Network};
use shared::api::page::{ListParams, Page};
use shared::id::NetworkId;

use super::Api;
use super::extract::{Id, Json, List, Wait};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::network::{CreateNetwork, DeleteNetwork, GetNetwork, ListNetworks};

/// Lists networks.
#[utoipa::path(get, path = "/networks", tag = "networks", params(ListParams), responses((status = 200, body = Page<Network>)))]
pub async fn list_networks(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListNetworks { params }).await
}

/// Makes a network.
#[utoipa::path(post, path = "/networks", tag = "networks", request_body = Body, responses((status = 201, body = Network)))]
pub async fn create_network(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    let made = api.call(&cx, CreateNetwork { id, body }).await?;
    reply::created(&cx, "networks", made.id, &made)
}

/// Shows a network.
#[utoipa::path(get, path = "/networks/{id}", tag = "networks", params(("id" = NetworkId, Path)), responses((status = 200, body = Network)))]
pub async fn get_network(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<NetworkId>) -> Answer {
    reply::ok(&api.call(&cx, GetNetwork { id }).await?)
}

/// Removes a network that no VM is in, from the hosts too.
#[utoipa::path(delete, path = "/networks/{id}", tag = "networks", params(("id" = NetworkId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn delete_network(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<NetworkId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, DeleteNetwork { id }).await?).await
}
