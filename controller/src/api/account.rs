//! `/v1/accounts`: owners of resources.

use std::sync::Arc;

use axum::extract::State;
use shared::api::account::{Account, CreateAccount as Body};
use shared::api::page::{ListParams, Page};
use shared::id::AccountId;

use super::Api;
use super::extract::{Id, Json, List};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::account::{CreateAccount, DeleteAccount, GetAccount, ListAccounts};

/// Lists accounts.
#[utoipa::path(get, path = "/accounts", tag = "accounts", params(ListParams), responses((status = 200, body = Page<Account>)))]
pub async fn list_accounts(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListAccounts { params }).await
}

/// Makes an account.
#[utoipa::path(post, path = "/accounts", tag = "accounts", request_body = Body, responses((status = 201, body = Account)))]
pub async fn create_account(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = body.id.unwrap_or_default();
    let made = api.call(&cx, CreateAccount { id, body }).await?;
    reply::created(&cx, "accounts", made.id, &made)
}

/// Shows an account.
#[utoipa::path(get, path = "/accounts/{id}", tag = "accounts", params(("id" = AccountId, Path)), responses((status = 200, body = Account)))]
pub async fn get_account(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<AccountId>) -> Answer {
    reply::ok(&api.call(&cx, GetAccount { id }).await?)
}

/// Removes an account that owns nothing, with its tokens.
#[utoipa::path(delete, path = "/accounts/{id}", tag = "accounts", params(("id" = AccountId, Path)), responses((status = 204)))]
pub async fn delete_account(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<AccountId>) -> Answer {
    api.call(&cx, DeleteAccount { id }).await?;
    reply::no_content()
}
