//! Contracts are files: a change of the API or of the codes that does not change them fails here.
//! After a wanted change: `UPDATE_CONTRACTS=1 cargo test -p kring-controller contracts`.

use std::collections::HashSet;
use std::path::Path;

use super::*;
use crate::api::{docs, openapi};

fn compare(path: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_CONTRACTS").is_some() {
        std::fs::write(&path, made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "{} is stale: run UPDATE_CONTRACTS=1 cargo test -p kring-controller contracts",
        path.display()
    );
}

#[test]
fn the_description_of_the_api_is_fresh() {
    compare("openapi.json", &openapi::json());
}

#[test]
fn the_page_of_errors_is_fresh() {
    compare("../docs/errors.md", &docs::errors_markdown());
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_is_described() {
    let api: Value = serde_json::from_str(&openapi::json()).unwrap();
    assert_eq!(api["openapi"], "3.1.0");
    let mut references = Vec::new();
    collect(&api, &mut references);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(api.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let (mut ids, mut operations) = (HashSet::new(), 0);
    let tags: Vec<&str> = api["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_string()), "{what}: its id twice");
            assert!(operation["summary"].is_string() && operation["responses"]["default"].is_object(), "{what}");
            assert!(tags.contains(&operation["tags"][0].as_str().unwrap()), "{what}");
            for parameter in path.split('{').skip(1).map(|part| part.split('}').next().unwrap()) {
                let named = operation["parameters"].as_array().unwrap().iter().any(|p| p["name"] == parameter);
                assert!(named, "{what}: {parameter} is not described");
            }
            operations += 1;
        }
    }
    assert!(operations >= 60, "{operations}");
}

fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            into.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_string));
            fields.values().for_each(|value| collect(value, into));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        _ => {}
    }
}

#[tokio::test]
async fn the_description_and_its_pages_are_served_to_everybody() {
    let gateway = Gateway::start(|_| ()).await;
    let served = gateway.get("/v1/openapi.json").send().await;
    assert_eq!(served.body, openapi::json());
    for (path, part) in [
        ("/docs", "docs.js"),
        ("/docs/docs.js", "openapi.json"),
        ("/docs/docs.css", "body"),
        ("/docs/errors", "id=\"no_host_fits\""),
    ] {
        let page = gateway.get(path).send().await;
        assert!(page.status == 200 && String::from_utf8_lossy(&page.body).contains(part), "{path}");
        assert!(page.header("content-security-policy").contains("default-src 'none'"));
    }
}
