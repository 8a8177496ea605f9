//! The API itself: who is let in, what is understood, lists, and the pages for machines.

use std::collections::BTreeSet;

use harness::client::{Call, Client, Reply};
use harness::cluster::Cluster;
use reqwest::Method;
use serde_json::{Value, json};
use shared::api::account::{Account, NewToken};
use shared::api::event::Event;
use shared::api::instance_type::{CreateInstanceType, InstanceType};
use shared::api::job::JobRef;
use shared::api::page::Page;
use shared::api::service::Service;
use shared::api::setting::Setting;
use shared::api::vm::Vm;
use shared::error::{Code, Problem};
use shared::units::Bytes;

use super::stream;
use super::vm::ready;

fn problem(reply: &Reply) -> anyhow::Result<Problem> {
    let kind = reply.headers.get("content-type").map(|v| v.to_str()).transpose()?;
    assert_eq!(kind, Some("application/problem+json"), "{}", reply.text);
    let problem: Problem = serde_json::from_value(reply.json.clone())?;
    assert_eq!(problem.status, reply.status);
    assert_eq!(reply.headers["x-request-id"].to_str()?, problem.request_id);
    Ok(problem)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_without_a_token_that_is_known() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    for token in [None, Some(""), Some("nonsense"), Some("a b"), Some(&"x".repeat(10_000))] {
        let reply = cluster.api.with_token(token).send(Call::new(Method::GET, "/v1/vms")).await?;
        assert!(matches!(reply.status, 400 | 401 | 431), "{token:?}: {}", reply.status);
    }
    let basic = cluster.api.with_token(None);
    let reply = basic.send(Call::new(Method::GET, "/v1/vms").header("authorization", "Basic YTpi")).await?;
    assert_eq!(problem(&reply)?.code, Code::Unauthenticated);
    // What tells nothing is open.
    for path in ["/healthz", "/readyz", "/v1/openapi.json", "/docs", "/docs/errors"] {
        assert_eq!(basic.send(Call::new(Method::GET, path)).await?.status, 200, "{path}");
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_normal_account_sees_and_touches_only_its_own() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let account: Account = cluster.api.post("/v1/accounts", &json!({ "name": "tenant" })).await?;
    let token: NewToken = cluster.api.post("/v1/tokens", &json!({ "name": "t", "account_id": account.id })).await?;
    let tenant: Client = cluster.api.with_token(Some(&token.secret));
    assert_eq!(tenant.get::<Page<Vm>>("/v1/vms").await?.items.len(), 0);
    assert_eq!(tenant.get::<Vm>(&format!("/v1/vms/{}", vm.id)).await.unwrap_err().code(), Code::NotFound);
    let stop = tenant.post::<JobRef>(&format!("/v1/vms/{}/stop", vm.id), &json!({})).await;
    assert_eq!(stop.unwrap_err().code(), Code::NotFound);
    for (path, body) in [
        ("/v1/join_tokens", json!({})),
        ("/v1/accounts", json!({ "name": "b" })),
        ("/v1/zones", json!({ "name": "z" })),
    ] {
        assert_eq!(tenant.post::<Value>(path, &body).await.unwrap_err().code(), Code::Forbidden, "{path}");
    }
    let setting = tenant.put::<Value>("/v1/settings/vm.stop_timeout", &json!({ "value": 1 })).await;
    assert_eq!(setting.unwrap_err().code(), Code::Forbidden);
    // A token that is taken back works no more, a moment later.
    let gone = cluster.api.send(Call::new(Method::DELETE, &format!("/v1/tokens/{}", token.token.id))).await?;
    assert!(gone.status < 300);
    harness::wait::until("the token does not work any more", async || {
        let answer = tenant.get::<Page<Vm>>("/v1/vms").await;
        answer.is_err_and(|failure| failure.code() == Code::Unauthenticated)
    })
    .await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_a_problem_that_says_so() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let api = &cluster.api;
    let post = |body: &str| Call::new(Method::POST, "/v1/zones").raw("application/json", body.as_bytes().to_vec());
    let large = format!("{{\"name\": \"a\", \"description\": \"{}\"}}", "x".repeat(2 << 20));
    let deep = "[".repeat(100_000);
    let cases = [
        (Call::new(Method::GET, "/v1/nothing"), Code::NotFound),
        (Call::new(Method::GET, "/v1/vms/../../etc/passwd"), Code::NotFound),
        (Call::new(Method::PUT, "/v1/vms"), Code::MethodNotAllowed),
        (Call::new(Method::GET, "/v1/vms/not-an-id"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms/00000000-0000-0000-0000-000000000000"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?surprise=1"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?limit=0"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?limit=1001"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?sort=no_such_field"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?q=1%20%3D%201%3B%20DROP%20TABLE%20vm"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?q=((((("), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?cursor=nonsense"), Code::InvalidRequest),
        (Call::new(Method::GET, "/v1/vms?fields=no_such_field"), Code::InvalidRequest),
        (post(""), Code::InvalidRequest),
        (post("{"), Code::InvalidRequest),
        (post("[]"), Code::InvalidRequest),
        (post("{\"name\": \"a\", \"name\": \"b\"}"), Code::InvalidRequest),
        (post("{\"name\": \"a\", \"surprise\": 1}"), Code::InvalidRequest),
        (post("{\"name\": \"\u{fffd}\"}"), Code::InvalidRequest),
        (post(&deep), Code::InvalidRequest),
        (post(&large), Code::TooLarge),
        (
            Call::new(Method::POST, "/v1/zones").raw("text/plain", b"{\"name\": \"a\"}".to_vec()),
            Code::UnsupportedMediaType,
        ),
    ];
    for (call, code) in cases {
        let said = format!("{call:.120?}");
        let reply = api.send(call).await?;
        assert_eq!(reply.status, code.status(), "{said}: {}", reply.text);
        assert_eq!(problem(&reply)?.code, code, "{said}: {}", reply.text);
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_paged_filtered_sorted_and_counted() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    for n in 0..25_u64 {
        let body = CreateInstanceType {
            id: None,
            name: format!("size-{n:02}").parse()?,
            vcpus: 1 + (n as u32 % 5),
            memory: Bytes::mib(64 * (n + 1)),
        };
        cluster.api.post::<InstanceType>("/v1/instance_types", &body).await?;
    }
    let q = "q=name%20like%20%22size-%25%22";
    let (mut names, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page: Page<InstanceType> =
            cluster.api.get(&format!("/v1/instance_types?{q}&limit=10&sort=-name&count=true{cursor}")).await?;
        assert_eq!(page.count, Some(25));
        names.extend(page.items.iter().map(|item| item.name.to_string()));
        pages += 1;
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut sorted = names.clone();
    sorted.sort_by(|a, b| b.cmp(a));
    assert_eq!((names.len(), pages), (25, 3));
    assert_eq!(names, sorted);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 25);
    let some: Page<InstanceType> = cluster
        .api
        .get(&format!("/v1/instance_types?{q}%20and%20vcpus%20in%20(1%2C%202)%20and%20not%20memory%20%3C%20134217728"))
        .await?;
    assert!(some.items.iter().all(|item| item.vcpus <= 2 && item.memory >= Bytes::mib(128)));
    assert_eq!(some.items.len(), 9);
    let short: Page<Value> = cluster.api.get(&format!("/v1/instance_types?{q}&limit=1&fields=name,vcpus")).await?;
    let keys: Vec<_> = short.items[0].as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default();
    assert_eq!(keys, ["name", "vcpus"]);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_while_kring_runs_and_only_to_what_makes_sense() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let path = "/v1/settings/vm.stop_timeout";
    for bad in [json!("60"), json!(0), json!(1.5), json!(4000), json!([]), json!(true)] {
        let failure = cluster.api.put::<Setting>(path, &json!({ "value": bad })).await.unwrap_err();
        assert_eq!(failure.code(), Code::InvalidRequest, "{bad}");
    }
    let changed: Setting = cluster.api.put(path, &json!({ "value": 7 })).await?;
    assert_eq!((changed.value, changed.default), (json!(7), json!(60)));
    cluster.restart().await?;
    assert_eq!(cluster.api.get::<Setting>(path).await?.value, json!(7));
    let back: Setting = cluster.api.put(path, &json!({ "value": null })).await?;
    assert_eq!(back.value, json!(60));
    let missing = cluster.api.get::<Setting>("/v1/settings/no.such").await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_in_order_and_resumed_where_one_left_off() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let read = async |after: i64, mut wanted: usize| {
        stream::read(&cluster.api, after, |_| {
            wanted -= 1;
            wanted == 0
        })
        .await
    };
    let first = read(0, 4).await?;
    assert!(first.is_sorted_by(|a, b| a.cursor < b.cursor), "{first:?}");
    let last = first.last().map_or(0, |event| event.cursor);
    cluster.vm_do(vm.id, "stop").await?;
    let second = read(last, 2).await?;
    assert!(second.iter().all(|event| event.cursor > last));
    assert!(second.iter().any(|event| event.path.starts_with("/job/") || event.path.starts_with("/vm/")), "{second:?}");
    let page: Page<Event> = cluster.api.get("/v1/events?limit=1000").await?;
    let paths: BTreeSet<_> = page.items.iter().map(|event| event.path.as_str()).collect();
    for path in ["/vm/state/changed", "/job/succeeded", "/host/connection/changed"] {
        assert!(paths.contains(path), "{path} in {paths:?}");
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_disabled_says_so_and_what_it_made_can_still_be_used() -> anyhow::Result<()> {
    let (mut cluster, image, network) = ready().await?;
    let config = cluster.config_file();
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("{text}\n[services]\ndisabled = [\"image\", \"network\"]\n"))?;
    cluster.restart().await?;
    let text = "the service `image` is disabled on this controller by services.disabled";
    let upload = format!("/v1/images/{}/content", image.id);
    let one = format!("/v1/images/{}", image.id);
    let calls = [
        Call::new(Method::GET, "/v1/images"),
        Call::new(Method::GET, &one),
        Call::new(Method::DELETE, &one),
        Call::new(Method::POST, "/v1/images").json(&cluster.image_body("http://images.example/x")),
        Call::new(Method::PUT, &upload).raw("application/octet-stream", vec![0; 1024]),
    ];
    for call in calls {
        let answer = cluster.api.send(call.clone()).await?;
        let said = (answer.status, answer.json["code"].as_str(), answer.json["detail"].as_str());
        assert_eq!(said, (503, Some("service_disabled"), Some(text)), "{call:?}");
        assert!(!answer.headers.contains_key("retry-after"), "it will not pass by itself");
    }
    let services = cluster.api.send(Call::new(Method::GET, "/v1/services")).await?;
    let services: Vec<Service> = serde_json::from_value(services.json["items"].clone())?;
    for service in services {
        let disabled = matches!(service.name.as_str(), "image" | "network");
        assert_eq!((service.disabled, service.started), (disabled, !disabled), "{}", service.name);
        assert_eq!(service.messages.is_empty(), disabled, "{}", service.name);
    }
    let host = cluster.sim.hosts()[0].id;
    cluster.connected(host, shared::api::host::HostConnection::Connected).await?;
    let vm = cluster.vm(&image, &network).await?;
    assert_eq!(vm.image_id, image.id);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_metrics_tell_what_is_done() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    cluster.vm(&image, &network).await?;
    let services = cluster.api.send(Call::new(Method::GET, "/v1/services")).await?;
    let items = services.json.get("items").cloned().unwrap_or(services.json);
    let services: Vec<Service> = serde_json::from_value(items)?;
    let vm = services.iter().find(|service| service.name == "vm").expect("the vm service");
    assert!(vm.started && vm.handled > 0, "{vm:?}");
    assert!(vm.messages.iter().any(|message| message == "vm.CreateVm"));
    let metrics = cluster.api.send(Call::new(Method::GET, "/metrics")).await?;
    assert_eq!(metrics.status, 200);
    let ended = "kring_jobs_ended_total{kind=\"vm.create\",state=\"succeeded\"} 1";
    assert!(metrics.text.contains(ended), "{}", metrics.text);
    let of = |name: &str| {
        let line = metrics.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name} in {}", metrics.text))
    };
    assert!(of("kring_db_writes_total") >= of("kring_db_commits_total") && of("kring_db_commits_total") > 0.0);
    assert!(of("kring_host_requests_total") >= of("kring_host_connections_total"));
    assert!(of("kring_host_connections_total") > 0.0 && of("process_resident_memory_bytes") > 0.0);
    // Operators find each of them in the documents.
    let told = include_str!("../../docs/monitoring.md");
    for name in metrics.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(told.contains(&format!("`{name}`")), "{name} is not in docs/monitoring.md");
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_of_the_api_names_every_path_that_the_tests_use() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let document: Value = cluster.api.get("/v1/openapi.json").await?;
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let paths = document["paths"].as_object().expect("paths");
    for path in ["/v1/vms", "/v1/vms/{id}", "/v1/vms/{id}/start", "/v1/hosts", "/v1/jobs/{id}/cancel", "/v1/events"] {
        assert!(paths.contains_key(path), "{path} in {:?}", paths.keys());
    }
    cluster.stop().await
}
