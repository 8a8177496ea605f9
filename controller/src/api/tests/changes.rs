//! Mutations: what they answer, how they are waited for, repeated and tried out.

use serde_json::json;
use shared::api::job::{Job, JobRef, JobResource, JobState};
use shared::api::vm::PlacementReport;
use shared::api::zone::Zone;
use shared::id::{JobId, VmId, ZoneId};
use shared::time::Timestamp;
use uuid::Uuid;

use super::*;
use crate::messages::job::{CancelJob, GetJob, WaitJob};
use crate::messages::vm::{CreateVm, PlanVm, StartVm, StopVm};
use crate::messages::zone::CreateZone;

fn job(id: JobId, state: JobState) -> Job {
    Job {
        id,
        kind: "vm.start".into(),
        state,
        cancel_requested: false,
        progress: 100,
        step: None,
        steps: Vec::new(),
        resource: JobResource { kind: "vm".into(), id: Uuid::nil() },
        account_id: AccountId::new(),
        request_id: String::new(),
        error: None,
        rolled_back: Vec::new(),
        cleanup_owed: Vec::new(),
        created_at: Timestamp(0),
        started_at: None,
        finished_at: None,
        deadline_at: Timestamp(0),
        links: Default::default(),
    }
}

fn job_ref(vm: VmId) -> JobRef {
    JobRef {
        job_id: JobId::from_uuid(Uuid::from_u128(7)),
        resource: JobResource { kind: "vm".into(), id: Uuid::from_u128(vm.to_string().len() as u128) },
    }
}

async fn gateway(state: JobState) -> Gateway {
    Gateway::start(move |services| {
        services.serve(|cx, m: CreateZone| async move {
            let key = cx.idempotency.as_ref().map_or("-".into(), |i| format!("{}:{}", i.key, i.request_hash));
            let description = format!("{key} {}", cx.dry_run);
            let id = if m.body.name.as_str() == "again" { ZoneId::from_uuid(Uuid::from_u128(5)) } else { m.id };
            Ok(Zone { id, name: m.body.name, description, created_at: Timestamp(0), links: Default::default() })
        });
        services.serve(|_, m: StartVm| async move { Ok(job_ref(m.id)) });
        services.serve(|_, m: StopVm| async move {
            Err::<JobRef, _>(Error::new(Code::InvalidState, format!("{:?} {:?}", m.body.mode, m.body.timeout_s)))
        });
        services.serve(|_, m: CreateVm| async move { Ok(job_ref(m.id)) });
        services.serve(|_, _: PlanVm| async move { Ok(PlacementReport { considered: 3, ..Default::default() }) });
        services.serve(move |_, m: WaitJob| async move { Ok(job(m.id, state)) });
        services.serve(|_, m: GetJob| async move { Ok(job(m.id, JobState::Queued)) });
        services.serve(|_, m: CancelJob| async move { Ok(job(m.id, JobState::RollingBack)) });
    })
    .await
}

#[tokio::test]
async fn a_create_answers_201_and_where_it_is() {
    let gateway = gateway(JobState::Running).await;
    let id = ZoneId::new();
    let reply = gateway.post("/v1/zones", json!({"id": id, "name": "a"})).admin().send().await;
    assert_eq!((reply.status.as_u16(), reply.header("location")), (201, format!("/v1/zones/{id}").as_str()));
    assert_eq!(reply.json()["id"], id.to_string());
    let other = gateway.post("/v1/zones", json!({"name": "a"})).admin().send().await;
    assert_eq!(other.header("location"), format!("/v1/zones/{}", other.json()["id"].as_str().unwrap()));
    // A repeated request is answered as the first time, whatever id was made for it this time.
    let again = gateway.post("/v1/zones", json!({"name": "again"})).admin().send().await;
    assert_eq!(again.header("location"), format!("/v1/zones/{}", Uuid::from_u128(5)));
    let dry = gateway.post("/v1/zones?dry_run=true", json!({"name": "a"})).admin().send().await;
    assert_eq!((dry.status.as_u16(), dry.header("location"), &dry.json()["description"]), (200, "", &json!("- true")));
}

#[tokio::test]
async fn work_is_accepted_and_can_be_waited_for() {
    let path = format!("/v1/vms/{}/start", VmId::new());
    let place = format!("/v1/jobs/{}", Uuid::from_u128(7));
    let ended = gateway(JobState::Succeeded).await;
    let reply = ended.call(Method::POST, &path).admin().send().await;
    assert_eq!((reply.status.as_u16(), reply.header("location")), (202, place.as_str()));
    assert_eq!(reply.json()["job_id"], Uuid::from_u128(7).to_string());
    let waited = ended.call(Method::POST, &path).admin().header("prefer", "respond-async, wait=5").send().await;
    assert_eq!((waited.status.as_u16(), waited.header("preference-applied")), (200, "wait=5"));
    assert_eq!(waited.json()["state"], "succeeded");
    let slow = gateway(JobState::Running).await;
    let reply = slow.call(Method::POST, &path).admin().header("prefer", "wait=1").send().await;
    assert_eq!((reply.status.as_u16(), reply.header("location")), (202, place.as_str()));
    assert!(reply.headers.get("preference-applied").is_none());
    let dry = slow.call(Method::POST, &format!("{path}?dry_run=true")).admin().send().await;
    assert_eq!((dry.status.as_u16(), &dry.json()["dry_run"]), (200, &json!(true)));
}

#[tokio::test]
async fn a_job_is_shown_waited_for_and_cancelled() {
    let gateway = gateway(JobState::Failed).await;
    let path = format!("/v1/jobs/{}", JobId::new());
    assert_eq!(gateway.get(&path).admin().send().await.json()["state"], "queued");
    assert_eq!(gateway.get(&path).admin().header("prefer", "wait=3").send().await.json()["state"], "failed");
    let reply = gateway.call(Method::POST, &format!("{path}/cancel")).admin().send().await;
    assert_eq!((reply.status.as_u16(), reply.header("location")), (202, path.as_str()));
}

#[tokio::test]
async fn a_dry_run_of_a_vm_says_where_it_would_be_placed() {
    let gateway = gateway(JobState::Running).await;
    let body = json!({"name": "a", "image_id": Uuid::from_u128(9), "vcpus": 1, "memory": 1 << 30});
    let reply = gateway.post("/v1/vms?dry_run=true", body.clone()).admin().send().await;
    assert_eq!((reply.status.as_u16(), &reply.json()["considered"]), (200, &json!(3)));
    assert_eq!(gateway.post("/v1/vms", body).admin().send().await.status, 202);
}

#[tokio::test]
async fn a_body_may_be_left_out_where_it_has_defaults() {
    let gateway = gateway(JobState::Running).await;
    let path = format!("/v1/vms/{}/stop", VmId::new());
    let detail = |reply: Reply| reply.json()["detail"].as_str().unwrap().to_string();
    assert_eq!(detail(gateway.call(Method::POST, &path).admin().send().await), "Graceful None");
    let body = json!({"mode": "force", "timeout_s": 5});
    assert_eq!(detail(gateway.post(&path, body).admin().send().await), "Force Some(5)");
}

#[tokio::test]
async fn an_idempotency_key_travels_with_a_hash_of_the_whole_request() {
    let gateway = gateway(JobState::Running).await;
    let mut hashes = Vec::new();
    for (path, body) in [("/v1/zones", "a"), ("/v1/zones", "a"), ("/v1/zones", "b"), ("/v1/zones?dry_run=false", "a")] {
        let reply = gateway.post(path, json!({"name": body})).admin().header("idempotency-key", "k1").send().await;
        let description = reply.json()["description"].as_str().unwrap().to_string();
        let hash = description.strip_prefix("k1:").unwrap().split(' ').next().unwrap().to_string();
        assert_eq!(hash.len(), 64);
        hashes.push(hash);
    }
    assert_eq!(hashes[0], hashes[1]);
    assert!(hashes[0] != hashes[2] && hashes[0] != hashes[3]);
}
