//! The admin account: made at first start, with a token that is shown once.

use shared::api::account::{Account, AccountKind, Token};
use shared::id::{AccountId, TokenId};
use shared::name::Name;
use shared::time::Timestamp;
use shared::{Error, Result};

use crate::auth::token::{new_secret, sha256_hex};
use crate::clock::Clock;
use crate::db::{self, Db, Tx};

fn name() -> Result<Name> {
    "admin".parse().map_err(Error::internal)
}

/// Makes the account `admin` with a token, unless it is there. Answers the token's secret when it was
/// made: it cannot be found again.
pub async fn ensure_admin(db: &Db, clock: &Clock) -> Result<Option<String>> {
    let (name, now) = (name()?, clock.now());
    let made = db.write(move |tx| {
        Box::pin(async move {
            if db::account::by_name(tx.conn(), &name).await?.is_some() {
                return Ok(None);
            }
            let account =
                Account { id: AccountId::new(), name: name.clone(), kind: AccountKind::Admin, created_at: now };
            db::account::insert(tx, &account).await?;
            add_token(tx, account.id, name, now).await.map(Some)
        })
    });
    Ok(made.await?)
}

/// Makes another token of the admin account, for an operator who has lost the first. Answers its secret.
pub async fn new_admin_token(db: &Db, clock: &Clock) -> Result<String> {
    let (name, now) = (name()?, clock.now());
    let made = db.write(move |tx| {
        Box::pin(async move {
            let account = db::account::by_name(tx.conn(), &name).await?;
            let account = account.ok_or_else(|| Error::not_found("account", &name))?;
            add_token(tx, account.id, name, now).await
        })
    });
    Ok(made.await?)
}

async fn add_token(tx: &mut Tx, account_id: AccountId, name: Name, now: Timestamp) -> db::Result<String> {
    let secret = new_secret();
    let token = Token { id: TokenId::new(), name, account_id, expires_at: None, created_at: now };
    db::token::insert(tx, &token, &sha256_hex(&secret)).await?;
    Ok(secret)
}
