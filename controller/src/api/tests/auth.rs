//! Who may do what, as the gateway decides it.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use serde_json::json;
use shared::api::page::Page;

use super::*;
use crate::cx::Caller;
use crate::db::query;
use crate::messages::account::RevokeToken;
use crate::messages::image::{GetImage, ListImages};
use crate::messages::zone::{CreateZone, DeleteZone};

async fn owned_image(gateway: &Gateway, owner: AccountId) -> String {
    let id = shared::id::ImageId::new().to_string();
    let (image, account) = (id.clone(), owner.to_string());
    gateway
        .db
        .write(move |tx| {
            Box::pin(async move {
                query("INSERT INTO account (id, name, kind, created_at) VALUES ($1, $1, 'normal', 0)").bind(account.clone()).execute(tx.conn()).await?;
                query("INSERT INTO image (id, name, account_id, state, source, firmware, created_at, version) VALUES ($1, 'x', $2, 'ready', '{}', 'bios', 0, 0)")
                    .bind(image)
                    .bind(account)
                    .execute(tx.conn())
                    .await?;
                Ok(())
            })
        })
        .await
        .unwrap();
    id
}

#[tokio::test]
async fn a_tenant_sees_its_own_and_cannot_tell_foreign_from_none() {
    let gateway = Gateway::start(|services| {
        services
            .serve(|_, m: GetImage| async move { Err(Error::new(Code::InvalidState, format!("asked for {}", m.id))) });
    })
    .await;
    let mine = owned_image(&gateway, gateway.tenant).await;
    let foreign = owned_image(&gateway, AccountId::new()).await;
    let missing = shared::id::ImageId::new().to_string();
    // The service is reached for one's own only; an admin reaches it always.
    assert_eq!(gateway.get(&format!("/v1/images/{mine}")).tenant().send().await.problem().0, 409);
    assert_eq!(gateway.get(&format!("/v1/images/{foreign}")).admin().send().await.problem().0, 409);
    let mut answers = Vec::new();
    for id in [&foreign, &missing] {
        let reply = gateway.get(&format!("/v1/images/{id}")).tenant().send().await;
        assert_eq!(reply.problem(), (404, "not_found".to_string()));
        answers.push(reply.json()["detail"].to_string().replace(id.as_str(), "ID"));
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn infrastructure_is_for_admins_and_the_caller_is_passed_on() {
    let gateway = Gateway::start(|services| {
        services.serve(|_, _: DeleteZone| async move { Ok(()) });
        services.serve(|cx, _: ListImages| async move {
            let Caller::Account { admin, .. } = cx.caller else { panic!("no account") };
            Ok(Page { items: Vec::new(), next_cursor: Some(admin.to_string()), count: None })
        });
    })
    .await;
    let zone = format!("/v1/zones/{}", shared::id::ZoneId::new());
    assert_eq!(gateway.call(Method::DELETE, &zone).tenant().send().await.problem(), (403, "forbidden".into()));
    assert_eq!(gateway.call(Method::DELETE, &zone).admin().send().await.status, 204);
    assert_eq!(gateway.get("/v1/images").tenant().send().await.json()["next_cursor"], "false");
    assert_eq!(gateway.get("/v1/images").admin().send().await.json()["next_cursor"], "true");
}

#[tokio::test]
async fn a_token_is_asked_for_once_in_a_while_and_wrong_ones_are_slowed_down() {
    let gateway = Gateway::start_with(|config| config.auth_failures_per_min = 5, |_| ()).await;
    let asked =
        || gateway.server.api().bus.services().find(|(name, _)| *name == "account").unwrap().1.stats.figures().handled;
    for _ in 0..5 {
        gateway.get("/v1/services").admin().send().await;
    }
    assert_eq!(asked(), 1);
    let mut codes = Vec::new();
    for n in 0..8 {
        codes.push(gateway.get("/v1/services").token(&format!("guess-{n}")).send().await.problem().0);
    }
    assert_eq!(codes, [401, 401, 401, 401, 401, 401, 429, 429]);
    let refused = gateway.get("/v1/services").token("guess").send().await;
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    // Who is known goes on.
    assert_eq!(gateway.get("/v1/services").admin().send().await.status, 200);
}

#[tokio::test]
async fn a_token_that_is_revoked_here_is_asked_for_at_once() {
    let gateway = Gateway::start(|services| services.serve(|_, _: RevokeToken| async move { Ok(()) })).await;
    let token = format!("/v1/tokens/{}", shared::id::TokenId::new());
    let authentications = async || {
        let json = gateway.get("/v1/services?fields=handled").admin().send().await.json();
        json["items"][0]["handled"].as_u64().unwrap()
    };
    let before = (authentications().await, authentications().await);
    assert_eq!(before.0, before.1);
    assert_eq!(gateway.call(Method::DELETE, &token).admin().send().await.status, 204);
    // The deletion itself, and the token that has to be asked for again.
    assert_eq!(authentications().await, before.1 + 2);
}

#[tokio::test]
async fn an_account_that_asks_too_much_has_to_wait() {
    let configure = |config: &mut ApiConfig| (config.rate_per_s, config.rate_burst) = (1, 3);
    let gateway = Gateway::start_with(configure, |_| ()).await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(gateway.get("/v1/services").tenant().send().await.status.as_u16());
    }
    assert!(statuses[..3] == [200, 200, 200] && statuses.contains(&429), "{statuses:?}");
    assert_eq!(gateway.get("/v1/services").admin().send().await.status, 200);
}

#[tokio::test]
async fn figures_are_for_this_machine_and_probes_for_everybody() {
    let gateway = Gateway::start(|_| ()).await;
    gateway.get("/v1/services").admin().send().await;
    let text = String::from_utf8(gateway.get("/metrics").send().await.body.to_vec()).unwrap();
    for part in [
        "kring_http_requests_total{route=\"/v1/services\",status=\"200\"} 1",
        "kring_bus_handled_total{service=\"account\"} 1",
        "kring_http_request_seconds_bucket",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(gateway.get("/healthz").send().await.status, 200);
    assert_eq!(gateway.get("/readyz").send().await.json(), json!({"ready": true, "broker": "none"}));
    gateway.server.api().set_not_ready(vec!["the broker is away".into()]);
    let reply = gateway.get("/readyz").send().await;
    assert_eq!(reply.problem().0, 503);
    assert!(reply.json()["detail"].as_str().unwrap().contains("the broker is away"));
}

#[tokio::test]
async fn a_request_has_the_trace_and_the_deadline_of_its_caller() {
    static LEFT: AtomicU32 = AtomicU32::new(0);
    let gateway = Gateway::start(|services| {
        services.serve(|cx, _: CreateZone| async move {
            LEFT.store(cx.left().unwrap().as_secs() as u32, SeqCst);
            Err::<shared::api::zone::Zone, _>(Error::new(
                Code::NameTaken,
                format!("{:032x} {}", cx.trace.trace_id, cx.request_id),
            ))
        });
    })
    .await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let reply = gateway
        .post("/v1/zones", json!({"name": "a"}))
        .admin()
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("x-request-id", "r1")
        .header("x-kring-timeout", "120")
        .send()
        .await;
    assert_eq!(reply.json()["detail"], format!("{trace} r1"));
    assert!((100..=120).contains(&LEFT.load(SeqCst)));
}
