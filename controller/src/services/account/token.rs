//! Handlers about tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::json;
use shared::api::account::{NewToken, Token};
use shared::api::page::Page;
use shared::id::AccountId;
use shared::{Code, Error, Result};

use crate::auth::token::{new_secret, sha256_hex};
use crate::cx::Cx;
use crate::db;
use crate::messages::account::{Authenticate, CreateToken, GetToken, Identity, ListTokens, RevokeToken};
use crate::services::{Context, announce, unknown_reference};

/// Makes a token. What is kept for a repetition under the same idempotency key is the token without
/// its secret, so a repetition is told that the secret was shown already.
pub(super) async fn create(context: Context, cx: Cx, message: CreateToken) -> Result<NewToken> {
    let account_id = account_for(&cx, message.body.account_id)?;
    let made = Arc::new(AtomicBool::new(false));
    let (secret, making) = (new_secret(), Arc::clone(&made));
    let hash = sha256_hex(&secret);
    let token = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            if message.body.expires_at.is_some_and(|at| at <= now) {
                return Err(Error::invalid("expires_at", "must be in the future").into());
            }
            let token = Token {
                id: message.id,
                name: message.body.name,
                account_id,
                expires_at: message.body.expires_at,
                created_at: now,
            };
            if db::token::get(tx.conn(), token.id).await?.is_some() {
                return Err(Error::new(Code::Conflict, "a token with this id exists: choose another id").into());
            }
            let inserted = db::token::insert(tx, &token, &hash).await;
            inserted.map_err(|e| unknown_reference(e, "account_id", "account"))?;
            announce(tx, token.id, "created", Some(account_id), &json!({ "name": token.name }), now)?;
            making.store(true, Relaxed);
            Ok(token)
        })
    });
    let token = token.await?;
    if !made.load(Relaxed) {
        let text = format!(
            "token {} was made by an earlier request with this Idempotency-Key, and its secret is shown only once: \
             revoke it and make another one when the secret is lost",
            token.id
        );
        return Err(Error::new(Code::Conflict, text));
    }
    Ok(NewToken { token, secret })
}

/// For whom a token is: the caller, or by an admin anybody.
fn account_for(cx: &Cx, wanted: Option<AccountId>) -> Result<AccountId> {
    let own = cx.caller.account();
    match wanted.or(own) {
        Some(account) if Some(account) == own || cx.caller.is_admin() => Ok(account),
        Some(_) => Err(Error::new(Code::Forbidden, "only an admin account may make tokens for another account")),
        None => Err(Error::invalid("account_id", "give the account that the token is for")),
    }
}

pub(super) async fn get(context: Context, _: Cx, message: GetToken) -> Result<Token> {
    let mut conn = context.deps.db.read().await?;
    db::token::get(&mut conn, message.id).await?.ok_or_else(|| Error::not_found("token", message.id))
}

pub(super) async fn list(context: Context, cx: Cx, message: ListTokens) -> Result<Page<Token>> {
    let page = context.deps.db.page(&db::token::LIST, message.params, cx.caller.scope()).await?;
    Ok(page.read(db::token::from_row)?)
}

pub(super) async fn revoke(context: Context, cx: Cx, message: RevokeToken) -> Result<()> {
    let revoked = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let token = db::token::get(tx.conn(), message.id).await?;
            let token = token.ok_or_else(|| Error::not_found("token", message.id))?;
            db::token::delete(tx, token.id).await?;
            announce(tx, token.id, "revoked", Some(token.account_id), &json!({ "name": token.name }), now)
        })
    });
    revoked.await
}

pub(super) async fn authenticate(context: Context, _: Cx, message: Authenticate) -> Result<Identity> {
    let mut conn = context.deps.db.read().await?;
    let found = db::token::find(&mut conn, &message.secret_sha256).await?;
    let now = context.deps.clock.now();
    match found.filter(|(token, _)| token.expires_at.is_none_or(|at| at > now)) {
        Some((token, kind)) => {
            Ok(Identity { account_id: token.account_id, kind, expires_at: token.expires_at.map(|at| at.ms()) })
        }
        None => Err(Error::new(Code::Unauthenticated, "the token is unknown or has expired: ask for a new one")),
    }
}
