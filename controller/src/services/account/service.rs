//! Handlers about accounts.

use serde_json::json;
use shared::api::account::{Account, AccountKind};
use shared::api::page::Page;
use shared::{Code, Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::account::{CreateAccount, DeleteAccount, GetAccount, ListAccounts};
use crate::services::{Context, announce, same_or_conflict, still_used};

pub(super) async fn create(context: Context, cx: Cx, message: CreateAccount) -> Result<Account> {
    let account = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let account =
                Account { id: message.id, name: message.body.name, kind: AccountKind::Normal, created_at: now };
            if let Some(existing) = db::account::get(tx.conn(), account.id).await? {
                let same = Account { created_at: existing.created_at, ..account };
                same_or_conflict("account", &existing, &same)?;
                return Ok(existing);
            }
            db::account::insert(tx, &account).await?;
            announce(tx, account.id, "created", None, &json!({ "name": account.name }), now)?;
            Ok(account)
        })
    });
    account.await
}

pub(super) async fn get(context: Context, _: Cx, message: GetAccount) -> Result<Account> {
    let mut conn = context.deps.db.read().await?;
    db::account::get(&mut conn, message.id).await?.ok_or_else(|| Error::not_found("account", message.id))
}

pub(super) async fn list(context: Context, cx: Cx, message: ListAccounts) -> Result<Page<Account>> {
    let page = context.deps.db.page(&db::account::LIST, message.params, cx.caller.scope()).await?;
    Ok(page.read(db::account::from_row)?)
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteAccount) -> Result<()> {
    let id = message.id;
    let deleted = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let account = db::account::get(tx.conn(), id).await?.ok_or_else(|| Error::not_found("account", id))?;
            if account.kind == AccountKind::Admin {
                return Err(Error::new(Code::InUse, "the admin account cannot be removed").into());
            }
            let in_use = "the account owns images, networks, volumes or VMs: remove them first";
            db::account::delete(tx, id).await.map_err(|error| still_used(error, in_use))?;
            announce(tx, id, "deleted", None, &json!({ "name": account.name }), now)
        })
    });
    deleted.await
}
