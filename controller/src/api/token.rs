//! `/v1/tokens`: what programs and people authenticate with.

use std::sync::Arc;

use axum::extract::State;
use shared::api::account::{CreateToken as Body, NewToken, Token};
use shared::api::page::{ListParams, Page};
use shared::id::TokenId;

use super::Api;
use super::extract::{Id, Json, List};
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::account::{CreateToken, GetToken, ListTokens, RevokeToken};

/// Lists tokens, without their secrets.
#[utoipa::path(get, path = "/tokens", tag = "tokens", params(ListParams), responses((status = 200, body = Page<Token>)))]
pub async fn list_tokens(State(api): State<Arc<Api>>, cx: Cx, List(params): List) -> Answer {
    reply::list(&api, &cx, params, |params| ListTokens { params }).await
}

/// Makes a token. Its secret is shown once, in this answer.
#[utoipa::path(post, path = "/tokens", tag = "tokens", request_body = Body, responses((status = 201, body = NewToken)))]
pub async fn create_token(State(api): State<Arc<Api>>, cx: Cx, Json(body): Json<Body>) -> Answer {
    let id = TokenId::new();
    let made = api.call(&cx, CreateToken { id, body }).await?;
    reply::created(&cx, "tokens", made.token.id, &made)
}

/// Shows a token, without its secret.
#[utoipa::path(get, path = "/tokens/{id}", tag = "tokens", params(("id" = TokenId, Path)), responses((status = 200, body = Token)))]
pub async fn get_token(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<TokenId>) -> Answer {
    reply::ok(&api.call(&cx, GetToken { id }).await?)
}

/// Makes a token stop working.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "tokens", params(("id" = TokenId, Path)), responses((status = 204)))]
pub async fn delete_token(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<TokenId>) -> Answer {
    api.call(&cx, RevokeToken { id }).await?;
    // It was promised to stop at once; which of the remembered tokens it was is not known here.
    api.gate.forget();
    reply::no_content()
}
