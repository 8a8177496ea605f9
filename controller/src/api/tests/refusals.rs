//! Hostile and mistaken requests: each is answered with a problem that says what to do.

use std::fmt::Write as _;

use http::Method;

use super::*;
use crate::messages::zone::{CreateZone, GetZone};

const ID: &str = "01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11";

async fn gateway() -> Gateway {
    Gateway::start(|services| {
        services.serve(|_, m: GetZone| async move {
            match m.id.to_string() == ID {
                true => panic!("a defect"),
                false => Err(Error::not_found("zone", m.id)),
            }
        });
        services.serve(
            |_, _: CreateZone| async move { Err::<shared::api::zone::Zone, _>(Error::internal("disk on fire")) },
        );
    })
    .await
}

#[tokio::test]
async fn every_refusal_is_a_problem_that_says_what_to_do() {
    let gateway = gateway().await;
    let long = format!("/v1/zones/{}", "a".repeat(4000));
    let deep = "[".repeat(100_000);
    let cases: Vec<(&str, Call<'_>)> = vec![
        ("no such path", gateway.get("/v1/nothing").admin()),
        ("no such path at all", gateway.get("/%ff/../x").admin()),
        ("no such method", gateway.call(Method::PATCH, "/v1/zones").admin()),
        ("a strange method", gateway.call(Method::from_bytes(b"BREW").unwrap(), "/v1/zones").admin()),
        ("a bad id", gateway.get("/v1/zones/x").admin()),
        ("an id that is no text", gateway.get("/v1/zones/%ff%fe").admin()),
        ("a long id", gateway.get(&long).admin()),
        ("no such zone", gateway.get("/v1/zones/01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e12").admin()),
        ("a panic in a service", gateway.get(&format!("/v1/zones/{ID}")).admin()),
        ("no token", gateway.get("/v1/zones")),
        ("a wrong token", gateway.get("/v1/zones").token("wrong")),
        ("another scheme", gateway.get("/v1/zones").header("authorization", "Basic eDp5")),
        ("no body", gateway.call(Method::POST, "/v1/zones").admin()),
        ("no media type", gateway.call(Method::POST, "/v1/zones").admin().body("{}")),
        (
            "another media type",
            gateway
                .call(Method::POST, "/v1/zones")
                .admin()
                .body("a=b")
                .header("content-type", "application/x-www-form-urlencoded"),
        ),
        (
            "no JSON",
            gateway
                .call(Method::POST, "/v1/zones")
                .admin()
                .header("content-type", "application/json")
                .body("{\"name\":"),
        ),
        (
            "no text",
            gateway
                .call(Method::POST, "/v1/zones")
                .admin()
                .header("content-type", "application/json")
                .body(vec![0xff, 0xfe]),
        ),
        (
            "deep JSON",
            gateway.call(Method::POST, "/v1/zones").admin().header("content-type", "application/json").body(deep),
        ),
        ("an unknown field", gateway.post("/v1/zones", serde_json::json!({"name": "a", "colour": "red"})).admin()),
        ("a wrong type", gateway.post("/v1/zones", serde_json::json!({"name": ["a"]})).admin()),
        ("a bad name", gateway.post("/v1/zones", serde_json::json!({"name": "../x"})).admin()),
        (
            "a field twice",
            gateway
                .call(Method::POST, "/v1/zones")
                .admin()
                .header("content-type", "application/json")
                .body("{\"name\":\"a\",\"name\":\"b\"}"),
        ),
        (
            "too large",
            gateway
                .call(Method::POST, "/v1/zones")
                .admin()
                .header("content-type", "application/json")
                .body(vec![b' '; 2 << 20]),
        ),
        ("an unknown parameter", gateway.get("/v1/zones?color=red").admin()),
        ("a bad limit", gateway.get("/v1/zones?limit=ten").admin()),
        ("a parameter twice", gateway.get("/v1/zones?q=a&q=b").admin()),
        ("bad fields", gateway.get("/v1/zones?fields=a%20b").admin()),
        ("an unencoded query", gateway.get("/v1/zones?q=%ff").admin()),
        ("a bad dry run", gateway.post("/v1/zones?dry_run=maybe", serde_json::json!({"name": "a"})).admin()),
        ("a bad timeout", gateway.get("/v1/zones").admin().header("x-kring-timeout", "9999")),
        (
            "a bad idempotency key",
            gateway.post("/v1/zones", serde_json::json!({"name": "a"})).admin().header("idempotency-key", ""),
        ),
        (
            "a bad preference",
            gateway.call(Method::POST, &format!("/v1/vms/{ID}/start")).admin().header("prefer", "wait=soon"),
        ),
        ("not a WebSocket", gateway.get("/v1/console/abc")),
        ("a defect inside", gateway.post("/v1/zones", serde_json::json!({"name": "a"})).admin()),
        ("nobody serves it", gateway.get("/v1/vms").admin()),
    ];
    let mut text = String::new();
    for (what, call) in cases {
        let reply = call.send().await;
        let (status, code) = reply.problem();
        let json = reply.json();
        let detail = json["detail"].as_str().unwrap().replace(&"a".repeat(60), "a…");
        let fields: Vec<&str> =
            json["errors"].as_array().into_iter().flatten().map(|e| e["field"].as_str().unwrap()).collect();
        let allow = reply.header("allow");
        writeln!(text, "{what}: {status} {code} {fields:?} {allow}\n    {detail}").unwrap();
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn a_request_keeps_its_id_when_it_is_sane() {
    let gateway = gateway().await;
    let reply = gateway.get("/v1/nothing").header("x-request-id", "abc-1").send().await;
    assert_eq!(reply.header("x-request-id"), "abc-1");
    for bad in ["", "a b", "<script>", &"a".repeat(200)] {
        let reply = gateway.get("/v1/nothing").header("x-request-id", bad).send().await;
        assert!(reply.header("x-request-id").parse::<uuid::Uuid>().is_ok(), "{bad}");
    }
}

#[tokio::test]
async fn only_an_operator_reads_what_lies_behind() {
    let gateway = gateway().await;
    let body = || serde_json::json!({"name": "a"});
    let seen = gateway.post("/v1/zones", body()).admin().send().await.json();
    assert_eq!(seen["causes"][0], "disk on fire");
    let tenant = gateway.get(&format!("/v1/zones/{ID}")).tenant().send().await;
    assert_eq!(tenant.problem(), (500, "internal".to_string()));
    let text = String::from_utf8_lossy(&tenant.body).into_owned();
    assert!(!text.contains("panicked") && !text.contains("causes"), "{text}");
}
