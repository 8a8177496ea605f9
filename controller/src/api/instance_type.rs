//! `/v1/instance_types`: named sizes of VM.

use std::sync::Arc;

use axum::extract::State;
use shared::api::instance_type::{CreateInstanceType as Body, InstanceType};
use shared::api::page::{ListParams, Page};
use shared::id::InstanceTypeId;

use super::Api;
use super::extract::{Id, Json, List};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::instance_type::{CreateInstanceType, DeleteInstanceType, GetInstanceType, ListInstanceTypes};

/// Lists instance types.
#[utoipa::path(get, path = "/instance_types", tag = "instance_types", params(ListParams), responses((status = 200, body = Page<InstanceType>)))]
pub async fn list_instance_types(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListInstanceTypes { params }).await
}

/// Makes an instance type.
#[utoipa::path(post, path = "/instance_types", tag = "instance_types", request_body = Body, responses((status = 201, body = InstanceType)))]
pub async fn create_instance_type(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    let made = api.call(&cx, CreateInstanceType { id, body }).await?;
    reply::created(&cx, "instance_types", made.id, &made)
}

/// Shows an instance type.
#[utoipa::path(get, path = "/instance_types/{id}", tag = "instance_types", params(("id" = InstanceTypeId, Path)), responses((status = 200, body = InstanceType)))]
pub async fn get_instance_type(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<InstanceTypeId>) -> Answer {
    reply::ok(&api.call(&cx, GetInstanceType { id }).await?)
}

/// Removes an instance type; VMs keep the sizes that they got from it.
#[utoipa::path(delete, path = "/instance_types/{id}", tag = "instance_types", params(("id" = InstanceTypeId, Path)), responses((status = 204)))]
pub async fn delete_instance_type(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<InstanceTypeId>) -> Answer {
    api.call(&cx, DeleteInstanceType { id }).await?;
    reply::no_content()
}
