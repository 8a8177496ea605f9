//! `/v1/clusters`: hosts that share networks and storage.

use std::sync::Arc;

use axum::extract::State;
use shared::api::cluster::{Cluster, CreateCluster as Body};
use shared::api::page::{ListParams, Page};
use shared::id::ClusterId;

use super::Api;
use super::extract::{Id, Json, List};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::cluster::{CreateCluster, DeleteCluster, GetCluster, ListClusters};

/// Lists clusters.
#[utoipa::path(get, path = "/clusters", tag = "clusters", params(ListParams), responses((status = 200, body = Page<Cluster>)))]
pub async fn list_clusters(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListClusters { params }).await
}

/// Makes a cluster.
#[utoipa::path(post, path = "/clusters", tag = "clusters", request_body = Body, responses((status = 201, body = Cluster)))]
pub async fn create_cluster(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    let made = api.call(&cx, CreateCluster { id, body }).await?;
    reply::created(&cx, "clusters", made.id, &made)
}

/// Shows a cluster.
#[utoipa::path(get, path = "/clusters/{id}", tag = "clusters", params(("id" = ClusterId, Path)), responses((status = 200, body = Cluster)))]
pub async fn get_cluster(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ClusterId>) -> Answer {
    reply::ok(&api.call(&cx, GetCluster { id }).await?)
}

/// Removes an empty cluster.
#[utoipa::path(delete, path = "/clusters/{id}", tag = "clusters", params(("id" = ClusterId, Path)), responses((status = 204)))]
pub async fn delete_cluster(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ClusterId>) -> Answer {
    api.call(&cx, DeleteCluster { id }).await?;
    reply::no_content()
}
