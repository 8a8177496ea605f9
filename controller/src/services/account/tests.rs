//! Accounts and tokens through the bus.

use shared::Code;
use shared::api::account::{AccountKind, CreateAccount as AccountBody, CreateToken as TokenBody};
use shared::api::page::ListParams;
use shared::id::{AccountId, TokenId};

use super::*;
use crate::auth::token::sha256_hex;
use crate::messages::account::{
    Authenticate, CreateAccount, CreateToken, DeleteAccount, GetAccount, GetToken, ListAccounts, ListTokens,
    RevokeToken,
};
use crate::services::testing::{call_of, systems, with_key};

fn account(name: &str) -> CreateAccount {
    CreateAccount { id: AccountId::new(), body: AccountBody { id: None, name: name.parse().unwrap() } }
}

fn token(account_id: Option<AccountId>) -> CreateToken {
    CreateToken { id: TokenId::new(), body: TokenBody { name: "ci".parse().unwrap(), account_id, expires_at: None } }
}

#[tokio::test]
async fn an_account_is_made_once_and_its_name_is_its_own() {
    for system in systems().await {
        let wanted = account("acme");
        let made = system.by_admin(wanted.clone()).await.unwrap();
        assert_eq!((made.kind, system.by_admin(wanted.clone()).await.unwrap()), (AccountKind::Normal, made.clone()));
        let other = CreateAccount { id: wanted.id, ..account("other") };
        let conflict = system.by_admin(other).await.unwrap_err();
        assert!(conflict.code == Code::Conflict && conflict.message.contains("another name"), "{conflict}");
        assert_eq!(system.by_admin(account("acme")).await.unwrap_err().code, Code::NameTaken);
        let q = Some("name = acme".to_string());
        let found = system.by_admin(ListAccounts { params: ListParams { q, ..Default::default() } }).await.unwrap();
        assert_eq!(found.items, [made]);
    }
}

#[tokio::test]
async fn a_token_works_until_it_expires_or_is_revoked() {
    for system in systems().await {
        let now = system.context.deps.clock.now();
        let mut wanted = token(None);
        wanted.body.expires_at = Some(now.plus_ms(60_000));
        let made = system.by_tenant(wanted).await.unwrap();
        let forever = system.by_tenant(token(None)).await.unwrap();
        let ask = |secret: &str| system.by_tenant(Authenticate { secret_sha256: sha256_hex(secret) });
        let identity = ask(&made.secret).await.unwrap();
        assert_eq!((identity.account_id, identity.kind), (system.seed.account.id, AccountKind::Normal));
        system.context.deps.clock.step(60_001);
        assert_eq!(ask(&made.secret).await.unwrap_err().code, Code::Unauthenticated);
        ask(&forever.secret).await.unwrap();
        system.by_tenant(RevokeToken { id: forever.token.id }).await.unwrap();
        assert_eq!(ask(&forever.secret).await.unwrap_err().code, Code::Unauthenticated);
        assert_eq!(system.by_tenant(RevokeToken { id: forever.token.id }).await.unwrap_err().code, Code::NotFound);
        assert_eq!(system.by_admin(GetToken { id: made.token.id }).await.unwrap(), made.token);
    }
}

#[tokio::test]
async fn only_admins_make_tokens_for_others_and_each_sees_its_own() {
    for system in systems().await {
        let other = system.by_admin(account("other")).await.unwrap();
        assert_eq!(system.by_tenant(token(Some(other.id))).await.unwrap_err().code, Code::Forbidden);
        system.by_admin(token(Some(other.id))).await.unwrap();
        let unknown = system.by_admin(token(Some(AccountId::new()))).await.unwrap_err();
        assert_eq!(unknown.fields[0].field, "account_id");
        let mut late = token(None);
        late.body.expires_at = Some(system.context.deps.clock.now());
        assert_eq!(system.by_tenant(late).await.unwrap_err().fields[0].field, "expires_at");
        let mine = system.by_tenant(ListTokens::default()).await.unwrap();
        assert_eq!(mine.items.len(), 0);
        let theirs = system.bus.call(&call_of(other.id, false), ListTokens::default()).await.unwrap();
        assert_eq!(theirs.items.len(), 1);
    }
}

#[tokio::test]
async fn a_secret_is_shown_once_and_written_nowhere() {
    for system in systems().await {
        let cx = with_key(&system.tenant, "key-1", "hash");
        let made = system.bus.call(&cx, token(None)).await.unwrap();
        let repeated = system.bus.call(&cx, token(None)).await.unwrap_err();
        assert!(repeated.code == Code::Conflict && repeated.message.contains(&made.token.id.to_string()), "{repeated}");
        let mismatch = with_key(&system.tenant, "key-1", "another");
        let mismatch = system.bus.call(&mismatch, token(None)).await.unwrap_err();
        assert_eq!(mismatch.code, Code::IdempotencyMismatch);
        let kept = crate::db::testing::everything(&system.context.deps.db).await;
        assert!(!kept.contains(&made.secret) && kept.contains(&sha256_hex(&made.secret)));
    }
}

#[tokio::test]
async fn the_admin_is_made_at_the_first_start_only() {
    for system in systems().await {
        let (db, clock) = (&system.context.deps.db, &system.context.deps.clock);
        assert_eq!(new_admin_token(db, clock).await.unwrap_err().code, Code::NotFound);
        let first = ensure_admin(db, clock).await.unwrap().unwrap();
        assert_eq!(ensure_admin(db, clock).await.unwrap(), None);
        let second = new_admin_token(db, clock).await.unwrap();
        for secret in [first, second] {
            let identity = system.by_tenant(Authenticate { secret_sha256: sha256_hex(&secret) }).await.unwrap();
            assert_eq!(identity.kind, AccountKind::Admin);
        }
    }
}

#[tokio::test]
async fn an_account_goes_only_when_it_owns_nothing() {
    for system in systems().await {
        let seeded = system.by_admin(DeleteAccount { id: system.seed.account.id }).await.unwrap_err();
        assert_eq!(seeded.code, Code::InUse);
        let empty = system.by_admin(account("empty")).await.unwrap();
        system.by_admin(DeleteAccount { id: empty.id }).await.unwrap();
        assert_eq!(system.by_admin(GetAccount { id: empty.id }).await.unwrap_err().code, Code::NotFound);
    }
}
