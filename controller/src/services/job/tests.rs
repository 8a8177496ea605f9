//! Jobs through the bus.

use std::time::Duration;

use shared::Code;
use shared::api::job::JobState;
use shared::api::page::ListParams;
use shared::id::{JobId, NetworkId};
use shared::wire::Empty;
use shared::wire::network::DeleteNetwork as OnHost;

use crate::messages::job::{CancelJob, GetJob, ListJobs, WaitJob, WatchJob};
use crate::messages::network::DeleteNetwork;
use crate::services::testing::{TestSystem, systems};

#[tokio::test]
async fn a_job_is_waited_for_and_cannot_be_cancelled_when_it_has_ended() {
    for system in systems().await {
        system.agent.will_answer::<OnHost>(Ok(Empty {}));
        let accepted = system.by_tenant(DeleteNetwork { id: system.seed.network.id }).await.unwrap();
        let job = system.end_of(accepted.clone()).await;
        assert_eq!((job.state, job.progress, job.error.clone()), (JobState::Succeeded, 100, None));
        assert_eq!(job.links.keys().collect::<Vec<_>>(), ["self"]);
        assert_eq!(system.by_tenant(GetJob { id: job.id }).await.unwrap(), job);
        let late = system.by_tenant(CancelJob { id: job.id }).await.unwrap_err();
        assert!(late.code == Code::InvalidState && late.message.contains("succeeded"), "{late}");
        let q = Some(format!("resource.id = {} and state = succeeded", accepted.resource.id));
        let listed = system.by_tenant(ListJobs { params: ListParams { q, ..Default::default() } }).await.unwrap();
        assert_eq!(listed.items, [job]);
    }
}

/// A job of a kind that nothing here runs, so it stays where it is.
async fn open_job(system: &TestSystem) -> JobId {
    let id = JobId::new();
    let now = system.context.deps.clock.now();
    let resource = shared::api::job::JobResource {
        kind: "network".to_string(),
        id: shared::id::ResourceId::uuid(NetworkId::new()),
    };
    let job = crate::db::job::NewJob {
        id,
        kind: "test.none",
        resource,
        account_id: system.seed.account.id,
        request_id: "r".to_string(),
        traceparent: String::new(),
        steps: vec!["one"],
        step: 0,
        data: "{}".to_string(),
        created_at: now,
        deadline_at: now.plus_ms(60_000),
        generation: 1,
        controller_id: system.context.deps.ring.me(),
    };
    system
        .context
        .deps
        .db
        .write(move |tx| Box::pin(async move { crate::db::job::insert(tx, &job).await }))
        .await
        .unwrap();
    id
}

#[tokio::test]
async fn a_controller_that_watches_a_job_for_another_answers_when_it_has_left() {
    for system in systems().await {
        let id = open_job(&system).await;
        // Long before its deadline, however slow this machine is.
        let cx = system.admin.within(Duration::from_secs(3600));
        let leaves = async {
            loop {
                system.context.engine.wake(id);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            watched = system.bus.call(&cx, WatchJob { id }) => watched.unwrap(),
            () = leaves => {}
        }
        let unknown = system.bus.call(&cx, WatchJob { id: JobId::new() }).await.unwrap_err();
        assert_eq!(unknown.code, Code::NotFound);
    }
}

#[tokio::test]
async fn who_waits_gets_the_job_as_it_is_at_the_deadline() {
    for system in systems().await {
        let id = open_job(&system).await;
        // A tenth of the time is left for the answer's way back: enough also on a machine under load.
        let seen = system.bus.call(&system.tenant.within(Duration::from_secs(5)), WaitJob { id }).await.unwrap();
        assert_eq!((seen.state, seen.links.contains_key("cancel")), (JobState::Queued, true));
        let cancelled = system.by_tenant(CancelJob { id }).await.unwrap();
        assert!(cancelled.cancel_requested && !cancelled.links.contains_key("cancel"));
        assert_eq!(system.by_tenant(CancelJob { id }).await.unwrap(), cancelled, "asking twice is asking once");
    }
}

#[tokio::test]
async fn an_unknown_job_is_not_waited_for() {
    for system in systems().await {
        let id = JobId::new();
        assert_eq!(system.by_tenant(WaitJob { id }).await.unwrap_err().code, Code::NotFound);
        assert_eq!(system.by_tenant(CancelJob { id }).await.unwrap_err().code, Code::NotFound);
    }
}
