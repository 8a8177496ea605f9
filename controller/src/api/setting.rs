//! `/v1/settings`: typed values that change how Kring behaves, at run time.

use std::sync::Arc;

use axum::extract::State;
use shared::api::page::{ListParams, Page};
use shared::api::setting::{Setting, UpdateSetting as Body};

use super::Api;
use super::extract::{Id, Json, List};
use super::reply::{self, Answer};
use super::service::whole;
use crate::cx::Cx;
use crate::messages::setting::{GetSetting, ListSettings, UpdateSetting};

/// Lists all settings, in order of their keys.
#[utoipa::path(get, path = "/settings", tag = "settings", params(ListParams), responses((status = 200, body = Page<Setting>)))]
pub async fn list_settings(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    whole(api.call(&cx, ListSettings {}).await?, &params)
}

/// Shows a setting.
#[utoipa::path(get, path = "/settings/{key}", tag = "settings", params(("key" = String, Path)), responses((status = 200, body = Setting)))]
pub async fn get_setting(State(api): State<Arc<Api>>, cx: Cx, Id(key): Id<String>) -> Answer {
    reply::ok(&api.call(&cx, GetSetting { key }).await?)
}

/// Changes a setting; `null` takes it back to its default.
#[utoipa::path(put, path = "/settings/{key}", tag = "settings", params(("key" = String, Path)), request_body = Body, responses((status = 200, body = Setting)))]
pub async fn update_setting(
    State(api): State<Arc<Api>>,
    cx: Cx,
    Id(key): Id<String>,
    Json(body): Json<Body>,
) -> Answer {
    reply::ok(&api.call(&cx, UpdateSetting { key, body }).await?)
}
