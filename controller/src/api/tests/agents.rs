//! Agents: a certificate decides who speaks; nobody speaks for another host.

use serde_json::json;
use shared::api::host::Host;
use shared::id::ImageId;
use shared::wire::host::Joined;

use super::*;
use crate::messages::host::{GetHost, HostEvents, JoinHost, RenewHost};

fn joined(id: HostId) -> Joined {
    Joined { host_id: id, certificate: "c".into(), ca: "ca".into(), controllers: Vec::new() }
}

async fn gateway(known: HostId) -> Gateway {
    Gateway::start_with(
        |config| config.auth_failures_per_min = 3,
        |services| {
            services.serve(|_, m: JoinHost| async move {
                assert_eq!(m.from, "127.0.0.1");
                match m.join.token.as_str() {
                    "good" => Ok(joined(m.id)),
                    _ => Err(Error::new(Code::Unauthenticated, "the join token is unknown, used or too old")),
                }
            });
            services.serve(|_, m: RenewHost| async move { Ok(joined(m.id)) });
            services.serve(move |_, m: HostEvents| async move {
                if m.id == known { Ok(()) } else { Err(Error::not_found("host", m.id)) }
            });
            services.serve(move |_, m: GetHost| async move {
                // Whether the host is known is all that matters here.
                if m.id == known { Ok(host(m.id)) } else { Err(Error::not_found("host", m.id)) }
            });
        },
    )
    .await
}

fn host(id: HostId) -> Host {
    serde_json::from_value(json!({
        "id": id, "name": "h", "cluster_id": HostId::new(), "address": "a:1", "admin_state": "enabled", "connection": "connected",
        "capacity": {"vcpus_total": 0, "vcpus_reserved": 0, "memory_total": 0, "memory_reserved": 0}, "facts": {},
        "created_at": "1970-01-01T00:00:00Z"
    }))
    .unwrap()
}

fn join(token: &str) -> Value {
    json!({"token": token, "name": "h1", "csr": "x", "port": 7443, "facts": {}})
}

/// The code of an error as agents read it.
fn refused(reply: &Reply) -> (u16, Code) {
    assert_eq!(reply.header("content-type"), "application/json");
    let error: Error = serde_json::from_slice(&reply.body).unwrap();
    (reply.status.as_u16(), error.code)
}

#[tokio::test]
async fn a_host_joins_with_a_token_and_guessing_is_slowed_down() {
    let gateway = gateway(HostId::new()).await;
    let reply = gateway.post("/agent/v1/join", join("good")).send().await;
    let first: Joined = serde_json::from_slice(&reply.body).unwrap();
    let again = json!({"host_id": first.host_id, "token": "good", "name": "h1", "csr": "x", "port": 7443, "facts": {}});
    let reply = gateway.post("/agent/v1/join", again).send().await;
    assert_eq!(reply.json()["host_id"], first.host_id.to_string());
    let mut codes = Vec::new();
    for _ in 0..6 {
        codes.push(refused(&gateway.post("/agent/v1/join", join("bad")).send().await).0);
    }
    assert_eq!(codes, [401, 401, 401, 401, 429, 429]);
}

#[tokio::test]
async fn without_a_certificate_nothing_is_told() {
    let gateway = gateway(HostId::new()).await;
    let task = format!("/agent/v1/callbacks/{}", TaskId::new());
    let image = format!("/agent/v1/images/{}/content", ImageId::new());
    for call in [
        gateway.post("/agent/v1/renew", json!({"csr": "x"})),
        gateway.post("/agent/v1/events", json!({"host_id": HostId::new(), "events": []})),
        gateway.post(&task, json!({})),
        gateway.get(&image),
        gateway.get(&image).admin(),
    ] {
        assert_eq!(refused(&call.send().await), (401, Code::Unauthenticated));
    }
}

#[tokio::test]
async fn a_host_speaks_for_itself_alone() {
    let me = HostId::new();
    let gateway = gateway(me).await;
    let events = |id: HostId| json!({"host_id": id, "events": [{"kind": "agent_started"}]});
    assert_eq!(gateway.post("/agent/v1/events", events(me)).host(me).send().await.status, 204);
    let other = gateway.post("/agent/v1/events", events(HostId::new())).host(me).send().await;
    assert_eq!(refused(&other), (403, Code::Forbidden));
    // A host that was deleted is not known any more, whatever its certificate says.
    let gone = HostId::new();
    assert_eq!(refused(&gateway.post("/agent/v1/events", events(gone)).host(gone).send().await), (404, Code::NotFound));
    let renewed = gateway.post("/agent/v1/renew", json!({"csr": "x"})).host(me).send().await.json();
    assert_eq!(renewed["host_id"], me.to_string());
}

#[tokio::test]
async fn a_report_reaches_who_waits_for_it_from_the_right_host() {
    let (me, task) = (HostId::new(), TaskId::new());
    let gateway = gateway(me).await;
    gateway.reports.0.lock().unwrap().insert(task, me);
    let path = format!("/agent/v1/callbacks/{task}");
    let report = |id: TaskId| json!({"state": "done", "task_id": id, "reply": {}});
    assert_eq!(refused(&gateway.post(&path, report(TaskId::new())).host(me).send().await).0, 400);
    assert_eq!(gateway.post(&path, report(task)).host(me).send().await.status, 204);
    assert_eq!(refused(&gateway.post(&path, report(task)).host(me).send().await), (404, Code::NotFound));
    gateway.reports.0.lock().unwrap().insert(task, me);
    assert_eq!(refused(&gateway.post(&path, report(task)).host(HostId::new()).send().await), (404, Code::NotFound));
}

#[tokio::test]
async fn the_content_of_an_image_is_sent_whole_or_from_where_it_broke_off() {
    let me = HostId::new();
    let gateway = gateway(me).await;
    let image = ImageId::new();
    let path = format!("/agent/v1/images/{image}/content");
    assert_eq!(refused(&gateway.get(&path).host(me).send().await), (404, Code::NotFound));
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    std::fs::create_dir_all(gateway.dir.path().join("images")).unwrap();
    std::fs::write(gateway.dir.path().join("images").join(image.to_string()), &content).unwrap();
    let whole = gateway.get(&path).host(me).send().await;
    assert_eq!((whole.status.as_u16(), whole.body.as_ref()), (200, content.as_slice()));
    let etag = whole.header("etag").to_string();
    let rest = gateway.get(&path).host(me).header("range", "bytes=999990-").header("if-range", &etag).send().await;
    assert_eq!((rest.status.as_u16(), rest.body.as_ref()), (206, &content[999_990..]));
    assert_eq!(rest.header("content-range"), "bytes 999990-999999/1000000");
    let changed = gateway.get(&path).host(me).header("range", "bytes=5-").header("if-range", "\"old\"").send().await;
    assert_eq!((changed.status.as_u16(), changed.body.len()), (200, content.len()));
    let beyond = gateway.get(&path).host(me).header("range", "bytes=1000000-").send().await;
    assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, "bytes */1000000"));
    assert_eq!(refused(&gateway.get(&path).host(HostId::new()).send().await), (404, Code::NotFound));
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_in_the_handshake() {
    use tokio::io::AsyncReadExt as _;
    let gateway = gateway(HostId::new()).await;
    let other = tempfile::tempdir().unwrap();
    let stranger = Pki::open(other.path().to_owned(), &[], Default::default(), gateway.clock.clone()).unwrap();
    let (certificate, key) = certificate(&stranger, HostId::new());
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(gateway.pki.ca().roots().unwrap())
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    let tcp = TcpStream::connect(gateway.server.address()).await.unwrap();
    let name = ServerName::try_from("controller.kring").unwrap();
    // With TLS 1.3 the client learns of the refusal when it reads.
    let refused = match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
        Ok(mut stream) => stream.read_u8().await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}
