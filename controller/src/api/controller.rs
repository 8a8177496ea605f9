//! `/v1/controllers` and `/v1/ring`: who shares the work, and who owns what.

use std::sync::Arc;

use axum::extract::State;
use shared::api::controller::{Controller, Ownership};
use shared::api::page::{ListParams, Page};
use shared::id::ControllerId;
use uuid::Uuid;

use super::Api;
use super::extract::{Id, List};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::controller::{ActivateController, DrainController, GetController, GetOwnership, ListControllers};

/// Lists controllers.
#[utoipa::path(get, path = "/controllers", tag = "controllers", params(ListParams), responses((status = 200, body = Page<Controller>)))]
pub async fn list_controllers(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListControllers { params }).await
}

/// Shows a controller.
#[utoipa::path(get, path = "/controllers/{id}", tag = "controllers", params(("id" = ControllerId, Path)), responses((status = 200, body = Controller)))]
pub async fn get_controller(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ControllerId>) -> Answer {
    reply::ok(&api.call(&cx, GetController { id }).await?)
}

/// Lets a controller give its share to the others; it goes on answering, and can then be stopped.
#[utoipa::path(post, path = "/controllers/{id}/drain", tag = "controllers", params(("id" = ControllerId, Path)), responses((status = 200, body = Controller)))]
pub async fn drain_controller(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ControllerId>) -> Answer {
    reply::ok(&api.call(&cx, DrainController { id }).await?)
}

/// Lets a drained controller have its share again.
#[utoipa::path(post, path = "/controllers/{id}/activate", tag = "controllers", params(("id" = ControllerId, Path)), responses((status = 200, body = Controller)))]
pub async fn activate_controller(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ControllerId>) -> Answer {
    reply::ok(&api.call(&cx, ActivateController { id }).await?)
}

/// Says which controller owns a resource, whatever its kind.
#[utoipa::path(get, path = "/ring/{id}", tag = "controllers", params(("id" = Uuid, Path)), responses((status = 200, body = Ownership)))]
pub async fn get_ownership(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<Uuid>) -> Answer {
    reply::ok(&api.call(&cx, GetOwnership { id }).await?)
}
