//! Lists: parameters go to the service, fields are picked here.

use serde_json::json;
use shared::api::page::{ListParams, Page};
use shared::api::setting::{Setting, SettingKind};
use shared::api::zone::Zone;
use shared::id::ZoneId;
use shared::time::Timestamp;

use super::*;
use crate::messages::setting::ListSettings;
use crate::messages::zone::ListZones;

async fn gateway() -> Gateway {
    Gateway::start(|services| {
        services.serve(|_, m: ListZones| async move {
            let ListParams { q, sort, limit, cursor, fields, count } = m.params;
            let zone = Zone {
                id: ZoneId::new(),
                name: "a".parse().unwrap(),
                description: json!([q, sort, limit, cursor, fields, count]).to_string(),
                created_at: Timestamp(0),
                links: Default::default(),
            };
            Ok(Page { items: vec![zone], next_cursor: Some("next".into()), count: Some(1) })
        });
        services.serve(|_, _: ListSettings| async move {
            let setting = Setting {
                key: "a.b".into(),
                value: json!(1),
                default: json!(1),
                kind: SettingKind::Integer,
                min: None,
                max: None,
                description: "x".into(),
                updated_at: None,
            };
            Ok(vec![setting])
        });
    })
    .await
}

#[tokio::test]
async fn parameters_reach_the_service_decoded() {
    let gateway = gateway().await;
    let path = "/v1/zones?q=name+like+%22w%25%22&sort=-name&limit=7&cursor=abc&count=true";
    let json = gateway.get(path).admin().send().await.json();
    assert_eq!(json["items"][0]["description"], r#"["name like \"w%\"","-name",7,"abc",null,true]"#);
    assert_eq!((&json["next_cursor"], &json["count"]), (&json!("next"), &json!(1)));
}

#[tokio::test]
async fn only_the_fields_that_were_asked_for_are_answered() {
    let gateway = gateway().await;
    let json = gateway.get("/v1/zones?fields=name,created_at").admin().send().await.json();
    assert_eq!(json["items"][0], json!({"name": "a", "created_at": "1970-01-01T00:00:00.000Z"}));
    assert_eq!(json["next_cursor"], "next");
    assert_eq!(gateway.get("/v1/zones?fields=name,nothing").admin().send().await.problem().0, 400);
}

#[tokio::test]
async fn short_lists_are_answered_whole() {
    let gateway = gateway().await;
    let json = gateway.get("/v1/settings?limit=1000&fields=key&count=true").admin().send().await.json();
    assert_eq!(json, json!({"items": [{"key": "a.b"}], "count": 1}));
    assert_eq!(gateway.get("/v1/settings?q=a").admin().send().await.problem().0, 400);
    let services = gateway.get("/v1/services").tenant().send().await.json();
    let names: Vec<&str> = services["items"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["account", "setting", "zone"]);
    assert_eq!(services["items"][2]["messages"], json!(["zone.ListZones"]));
}
