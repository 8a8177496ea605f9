//! `/v1/hosts`: KVM machines that run an agent; and the tokens that they join with.

use std::sync::Arc;

use axum::extract::State;
use shared::api::host::{CreateJoinToken as TokenBody, Host, JoinToken, UpdateHost as UpdateBody};
use shared::api::job::{Job, JobRef};
use shared::api::page::{ListParams, Page};
use shared::id::{HostId, JoinTokenId};

use super::Api;
use super::extract::{Id, Json, JsonOrDefault, List, Wait};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::host::{CreateJoinToken, DeleteHost, GetHost, ListHosts, MaintainHost, ReconnectHost, UpdateHost};

/// Lists hosts.
#[utoipa::path(get, path = "/hosts", tag = "hosts", params(ListParams), responses((status = 200, body = Page<Host>)))]
pub async fn list_hosts(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListHosts { params }).await
}

/// Shows a host.
#[utoipa::path(get, path = "/hosts/{id}", tag = "hosts", params(("id" = HostId, Path)), responses((status = 200, body = Host)))]
pub async fn get_host(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<HostId>) -> Answer {
    reply::ok(&api.call(&cx, GetHost { id }).await?)
}

/// Renames a host, or takes it out of use and back.
#[utoipa::path(patch, path = "/hosts/{id}", tag = "hosts", params(("id" = HostId, Path)), request_body = UpdateBody, responses((status = 200, body = Host)))]
pub async fn update_host(
    State(api): State<Arc<Api>>,
    cx: Cx,
    Id(id): Id<HostId>,
    Json(body): Json<UpdateBody>,
) -> Answer {
    reply::ok(&api.call(&cx, UpdateHost { id, body }).await?)
}

/// Compares a host with the database again, now.
#[utoipa::path(post, path = "/hosts/{id}/reconnect", tag = "hosts", params(("id" = HostId, Path)), responses((status = 200, body = Host)))]
pub async fn reconnect_host(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<HostId>) -> Answer {
    reply::ok(&api.call(&cx, ReconnectHost { id }).await?)
}

/// Takes a host out for maintenance: moves its VMs to other hosts, some at a time. What cannot be moved stays, and
/// the job says why; `PATCH` with `admin_state` `enabled` ends it.
#[utoipa::path(post, path = "/hosts/{id}/maintain", tag = "hosts", params(("id" = HostId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn maintain_host(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<HostId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, MaintainHost { id }).await?).await
}

/// Forgets a host that has no VMs; its certificate is no longer accepted.
#[utoipa::path(delete, path = "/hosts/{id}", tag = "hosts", params(("id" = HostId, Path)), responses((status = 204)))]
pub async fn delete_host(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<HostId>) -> Answer {
    api.call(&cx, DeleteHost { id }).await?;
    reply::no_content()
}

/// Makes a one-time token for a host to join with. It is shown once.
#[utoipa::path(post, path = "/join_tokens", tag = "hosts", request_body = TokenBody, responses((status = 201, body = JoinToken)))]
pub async fn create_join_token(
    State(api): State<Arc<Api>>,
    cx: Cx,
    JsonOrDefault(body): JsonOrDefault<TokenBody>,
) -> Answer {
    let id = JoinTokenId::new();
    let made = api.call(&cx, CreateJoinToken { id, body }).await?;
    reply::created(&cx, "join_tokens", made.id, &made)
}
