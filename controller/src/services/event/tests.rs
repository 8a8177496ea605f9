//! Events through the bus.

use std::time::Duration;

use serde_json::json;
use shared::Code;
use shared::api::account::CreateAccount as AccountBody;
use shared::api::page::ListParams;
use shared::id::{AccountId, VmId};

use crate::messages::account::CreateAccount;
use crate::messages::event::{ListEvents, NextEvents};
use crate::services::announce;
use crate::services::testing::{TestSystem, call_of, systems};

async fn happen(system: &TestSystem, what: &'static str, account: AccountId) {
    let now = system.context.deps.clock.now();
    let appended = system
        .context
        .deps
        .db
        .write(move |tx| Box::pin(async move { announce(tx, VmId::new(), what, Some(account), &json!({}), now) }));
    appended.await.unwrap();
}

fn after(cursor: i64) -> NextEvents {
    NextEvents { after: Some(cursor), max: 100 }
}

/// Time of a call that nothing happens in. A tenth of it is left for the answer's way back, which has to be
/// enough on a machine under load.
const SHORTLY: Duration = Duration::from_secs(5);

#[tokio::test]
async fn who_waits_is_woken_and_sees_what_is_its_own() {
    for system in systems().await {
        let mine = system.seed.account.id;
        // Nothing happens before the deadline: where to go on is told nevertheless.
        let shortly = system.tenant.within(SHORTLY);
        let start = system.bus.call(&shortly, NextEvents { after: None, max: 100 }).await.unwrap();
        assert_eq!((start.events.len(), start.cursor), (0, 0));
        let waiting = system.by_tenant(after(start.cursor));
        let happening = async {
            happen(&system, "started", AccountId::new()).await;
            happen(&system, "stopped", mine).await;
        };
        let (reply, ()) = tokio::join!(waiting, happening);
        let reply = reply.unwrap();
        assert_eq!(reply.events.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["/vm/stopped"]);
        let all = system.by_admin(after(start.cursor)).await.unwrap();
        assert_eq!(all.events.len(), 2);
        let listed = system.by_tenant(ListEvents { params: ListParams::default() }).await.unwrap();
        assert_eq!(listed.items, reply.events);
    }
}

#[tokio::test]
async fn pages_go_on_where_the_last_one_ended() {
    for system in systems().await {
        for _ in 0..5 {
            happen(&system, "started", system.seed.account.id).await;
        }
        let first = system.by_tenant(NextEvents { after: Some(0), max: 3 }).await.unwrap();
        let second = system.by_tenant(NextEvents { after: Some(first.cursor), max: 3 }).await.unwrap();
        let cursors: Vec<_> = first.events.iter().chain(&second.events).map(|e| e.cursor).collect();
        assert_eq!((cursors, second.cursor), (vec![1, 2, 3, 4, 5], 5));
        let stranger = call_of(AccountId::new(), false).within(SHORTLY);
        let nothing = system.bus.call(&stranger, after(0)).await.unwrap();
        assert_eq!((nothing.events.len(), nothing.cursor), (0, 5), "what is not for the caller is passed over");
        for strange in [-1, 6] {
            assert_eq!(system.by_tenant(after(strange)).await.unwrap_err().code, Code::InvalidRequest);
        }
    }
}

#[tokio::test]
async fn infrastructure_is_for_admins_only() {
    for system in systems().await {
        let body = AccountBody { id: None, name: "acme".parse().unwrap() };
        system.by_admin(CreateAccount { id: AccountId::new(), body }).await.unwrap();
        assert_eq!(system.by_admin(after(0)).await.unwrap().events[0].path, "/account/created");
        let seen = system.bus.call(&system.tenant.within(SHORTLY), after(0)).await.unwrap();
        assert_eq!(seen.events, []);
    }
}
