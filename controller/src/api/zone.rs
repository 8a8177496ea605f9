//! `/v1/zones`: failure domains.

use std::sync::Arc;

use axum::extract::State;
use shared::api::page::{ListParams, Page};
use shared::api::zone::{CreateZone as Body, Zone};
use shared::id::ZoneId;

use super::Api;
use super::extract::{Id, Json, List};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::zone::{CreateZone, DeleteZone, GetZone, ListZones};

/// Lists zones.
#[utoipa::path(get, path = "/zones", tag = "zones", params(ListParams), responses((status = 200, body = Page<Zone>)))]
pub async fn list_zones(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListZones { params }).await
}

/// Makes a zone.
#[utoipa::path(post, path = "/zones", tag = "zones", request_body = Body, responses((status = 201, body = Zone)))]
pub async fn create_zone(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    let made = api.call(&cx, CreateZone { id, body }).await?;
    reply::created(&cx, "zones", made.id, &made)
}

/// Shows a zone.
#[utoipa::path(get, path = "/zones/{id}", tag = "zones", params(("id" = ZoneId, Path)), responses((status = 200, body = Zone)))]
pub async fn get_zone(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ZoneId>) -> Answer {
    reply::ok(&api.call(&cx, GetZone { id }).await?)
}

/// Removes an empty zone.
#[utoipa::path(delete, path = "/zones/{id}", tag = "zones", params(("id" = ZoneId, Path)), responses((status = 204)))]
pub async fn delete_zone(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<ZoneId>) -> Answer {
    api.call(&cx, DeleteZone { id }).await?;
    reply::no_content()
}
