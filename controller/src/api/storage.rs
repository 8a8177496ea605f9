//! `/v1/storages`: places where volumes are kept.

use std::sync::Arc;

use axum::extract::State;
use shared::api::page::{ListParams, Page};
use shared::api::storage::{CreateStorage as Body, Storage};
use shared::id::StorageId;

use super::Api;
use super::extract::{Id, Json, List};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::storage::{CreateStorage, DeleteStorage, GetStorage, ListStorages};

/// Lists storages.
#[utoipa::path(get, path = "/storages", tag = "storages", params(ListParams), responses((status = 200, body = Page<Storage>)))]
pub async fn list_storages(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListStorages { params }).await
}

/// Makes a storage.
#[utoipa::path(post, path = "/storages", tag = "storages", request_body = Body, responses((status = 201, body = Storage)))]
pub async fn create_storage(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    let made = api.call(&cx, CreateStorage { id, body }).await?;
    reply::created(&cx, "storages", made.id, &made)
}

/// Shows a storage.
#[utoipa::path(get, path = "/storages/{id}", tag = "storages", params(("id" = StorageId, Path)), responses((status = 200, body = Storage)))]
pub async fn get_storage(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<StorageId>) -> Answer {
    reply::ok(&api.call(&cx, GetStorage { id }).await?)
}

/// Removes a storage that keeps no volumes.
#[utoipa::path(delete, path = "/storages/{id}", tag = "storages", params(("id" = StorageId, Path)), responses((status = 204)))]
pub async fn delete_storage(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<StorageId>) -> Answer {
    api.call(&cx, DeleteStorage { id }).await?;
    reply::no_content()
}
