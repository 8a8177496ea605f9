//! `/v1/volumes`: virtual disks.

use std::sync::Arc;

use axum::extract::State;
use shared::api::job::{Job, JobRef};
use shared::api::page::{ListParams, Page};
use shared::api::volume::{AttachVolume as AttachBody, CreateVolume as Body, Volume};
use shared::id::VolumeId;

use super::Api;
use super::extract::{Id, Json, List, Wait};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::volume::{AttachVolume, CreateVolume, DeleteVolume, DetachVolume, GetVolume, ListVolumes};

/// Lists volumes.
#[utoipa::path(get, path = "/volumes", tag = "volumes", params(ListParams), responses((status = 200, body = Page<Volume>)))]
pub async fn list_volumes(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListVolumes { params }).await
}

/// Makes an empty data volume.
#[utoipa::path(post, path = "/volumes", tag = "volumes", request_body = Body, responses((status = 201, body = Volume)))]
pub async fn create_volume(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    let made = api.call(&cx, CreateVolume { id, body }).await?;
    reply::created(&cx, "volumes", made.id, &made)
}

/// Shows a volume.
#[utoipa::path(get, path = "/volumes/{id}", tag = "volumes", params(("id" = VolumeId, Path)), responses((status = 200, body = Volume)))]
pub async fn get_volume(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<VolumeId>) -> Answer {
    reply::ok(&api.call(&cx, GetVolume { id }).await?)
}

/// Removes a data volume that is attached to nothing.
#[utoipa::path(delete, path = "/volumes/{id}", tag = "volumes", params(("id" = VolumeId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn delete_volume(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VolumeId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, DeleteVolume { id }).await?).await
}

/// Attaches a data volume to a VM, hot when the VM runs.
#[utoipa::path(post, path = "/volumes/{id}/attach", tag = "volumes", params(("id" = VolumeId, Path)), request_body = AttachBody, responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn attach_volume(
    State(api): State<Arc<Api>>,
    cx: Cx,
    wait: Wait,
    Id(id): Id<VolumeId>,
    Json(body): Json<AttachBody>,
) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, AttachVolume { id, body }).await?).await
}

/// Detaches a data volume from its VM, hot when the VM runs.
#[utoipa::path(post, path = "/volumes/{id}/detach", tag = "volumes", params(("id" = VolumeId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn detach_volume(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<VolumeId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, DetachVolume { id }).await?).await
}
