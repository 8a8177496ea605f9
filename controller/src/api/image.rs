//! `/v1/images`: what VMs are made from. Content: [`super::image_content`].

use std::sync::Arc;

use axum::extract::State;
use shared::api::image::{CreateImage as Body, Image};
use shared::api::job::{Job, JobRef};
use shared::api::page::{ListParams, Page};
use shared::id::ImageId;

use super::Api;
use super::extract::{Id, Json, List, Wait};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::image::{CreateImage, DeleteImage, GetImage, ListImages};

/// Lists images.
#[utoipa::path(get, path = "/images", tag = "images", params(ListParams), responses((status = 200, body = Page<Image>)))]
pub async fn list_images(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListImages { params }).await
}

/// Makes an image; its content is downloaded from a URL or uploaded afterwards.
#[utoipa::path(post, path = "/images", tag = "images", request_body = Body, responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn create_image(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    reply::job(&api, &cx, wait, api.call(&cx, CreateImage { id, body }).await?).await
}

/// Shows an image.
#[utoipa::path(get, path = "/images/{id}", tag = "images", params(("id" = ImageId, Path)), responses((status = 200, body = Image)))]
pub async fn get_image(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ImageId>) -> Answer {
    reply::ok(&api.call(&cx, GetImage { id }).await?)
}

/// Removes an image that no volume is based on, from the hosts too.
#[utoipa::path(delete, path = "/images/{id}", tag = "images", params(("id" = ImageId, Path)), responses((status = 202, body = JobRef), (status = 200, body = Job)))]
pub async fn delete_image(State(api): State<Arc<Api>>, cx: Cx, wait: Wait, Id(id): Id<ImageId>) -> Answer {
    reply::job(&api, &cx, wait, api.call(&cx, DeleteImage { id }).await?).await
}
