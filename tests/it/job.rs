//! Jobs: what they tell, waiting for them, cancelling them, and the order in which they run.

use harness::client::Call;
use harness::cluster::Setup;
use harness::sim::{Fault, What};
use harness::wait::until;
use reqwest::Method;
use serde_json::json;
use shared::api::job::{Job, JobRef, JobState};
use shared::api::page::Page;
use shared::error::Code;
use shared::id::JobId;
use shared::state::vm::VmState;
use shared::time::Timestamp;

use super::vm::{ready, ready_with};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_tells_its_steps_its_times_and_who_asked() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let body = cluster.vm_body(&image, &network);
    let reply = cluster.api.send(Call::new(Method::POST, "/v1/vms").json(&body)).await?;
    assert_eq!(reply.status, 202);
    let location = reply.headers["location"].to_str()?.to_string();
    let request = reply.headers["x-request-id"].to_str()?.to_string();
    let accepted: JobRef = reply.read()?;
    assert_eq!(location, format!("/v1/jobs/{}", accepted.job_id));
    let job = cluster.api.succeed(&accepted).await?;
    assert_eq!((job.kind.as_str(), job.progress, job.request_id.as_str()), ("vm.create", 100, request.as_str()));
    assert!(job.steps.len() > 1 && job.rolled_back.is_empty() && job.cleanup_owed.is_empty());
    let (started, finished) = (job.started_at.unwrap_or_default(), job.finished_at.unwrap_or_default());
    assert!(job.created_at <= started && started <= finished && finished < job.deadline_at);
    let query = format!("/v1/jobs?q=resource.id%20%3D%20%22{}%22", accepted.resource.id);
    let listed: Page<Job> = match cluster.api.get(&query).await {
        Ok(page) => page,
        Err(_) => cluster.api.get(&format!("/v1/jobs?q=resource_id%20%3D%20%22{}%22", accepted.resource.id)).await?,
    };
    assert_eq!(listed.items.iter().map(|job| job.id).collect::<Vec<_>>(), [accepted.job_id]);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_prefers_to_wait_gets_what_came_of_it() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let body = cluster.vm_body(&image, &network);
    let reply = cluster.api.send(Call::new(Method::POST, "/v1/vms").json(&body).wait(60)).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.read::<Job>()?.state, JobState::Succeeded);
    let vm = cluster.get_vm(body.id.unwrap_or_default()).await?;
    assert_eq!(vm.state, VmState::Running);
    // What fails while somebody waits is told at once as well.
    cluster.sim.faults().add(Fault::new("vm/ensure", What::Fail { code: Code::NoSpace }).times(1));
    let body = cluster.vm_body(&image, &network);
    let reply = cluster.api.send(Call::new(Method::POST, "/v1/vms").json(&body).wait(60)).await?;
    let job: Job = reply.read()?;
    assert_eq!((job.state, job.error.map(|error| error.code)), (JobState::Failed, Some(Code::NoSpace)));
    // What takes longer is answered as if nobody waited.
    let fault = cluster.sim.faults().add(Fault::new("vm/ensure", What::Hang).times(1));
    let body = cluster.vm_body(&image, &network);
    let reply = cluster.api.send(Call::new(Method::POST, "/v1/vms").json(&body).wait(1)).await?;
    assert_eq!((reply.status, cluster.sim.faults().hits(fault)), (202, 1));
    let job: JobRef = reply.read()?;
    cluster.api.post::<Job>(&format!("/v1/jobs/{}/cancel", job.job_id), &json!({})).await?;
    assert_eq!(cluster.api.wait_job(job.job_id).await?.state, JobState::Cancelled);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_about_one_vm_run_one_after_the_other() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let fault = cluster.sim.faults().add(Fault::new("vm/stop", What::Hang).times(1));
    let stop = cluster.vm_verb(vm.id, "stop").await?;
    until("the host hangs", async || cluster.sim.faults().hits(fault) == 1).await?;
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Stopping);
    // While a job holds the VM, another one that needs it at rest is refused, and a delete as well.
    let start = cluster.api.post::<JobRef>(&format!("/v1/vms/{}/start", vm.id), &json!({})).await;
    assert_eq!(start.unwrap_err().code(), Code::InvalidState);
    cluster.api.post::<Job>(&format!("/v1/jobs/{}/cancel", stop.job_id), &json!({})).await?;
    assert_eq!(cluster.api.wait_job(stop.job_id).await?.state, JobState::Cancelled);
    cluster.vm_becomes(vm.id, VmState::Running).await?;
    cluster.vm_do(vm.id, "stop").await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_clock_is_off_keeps_the_time_of_the_database() -> anyhow::Result<()> {
    const HOUR: i64 = 3_600_000;
    // Far enough for every deadline to have passed, or not to come.
    for ahead in [-24 * HOUR, 24 * HOUR] {
        let setup = Setup { clock_ahead_ms: ahead, ..Setup::default() };
        let (mut cluster, image, network) = ready_with(setup).await?;
        let held = cluster.sim.faults().add(Fault::new("vm/ensure", What::Held));
        let accepted: JobRef = cluster.api.post("/v1/vms", &cluster.vm_body(&image, &network)).await?;
        until("the host has it", async || cluster.sim.faults().hits(held) > 0).await?;
        let job: Job = cluster.api.get(&format!("/v1/jobs/{}", accepted.job_id)).await?;
        let real = Timestamp::now().ms();
        assert!((job.created_at.ms() - real).abs() < HOUR, "{ahead}: {} at {real}", job.created_at);
        assert!(job.deadline_at.ms() > real && job.deadline_at.ms() < real + 12 * HOUR, "{}", job.deadline_at);
        // The next life is on a machine whose clock is off the other way: the job goes on to its end.
        cluster.set_clock_ahead_ms(-ahead);
        cluster.restart().await?;
        cluster.sim.faults().clear();
        let job = cluster.api.succeed(&accepted).await?;
        assert!(job.finished_at.is_some_and(|at| at >= job.created_at && at < job.deadline_at), "{job:?}");
        cluster.assert_consistent().await?;
        cluster.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_exist_is_not_found() -> anyhow::Result<()> {
    let (cluster, _, _) = ready().await?;
    let path = format!("/v1/jobs/{}", JobId::new());
    assert_eq!(cluster.api.get::<Job>(&path).await.unwrap_err().code(), Code::NotFound);
    let cancel = cluster.api.post::<Job>(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(cancel.unwrap_err().code(), Code::NotFound);
    assert_eq!(cluster.api.get::<Job>("/v1/jobs/nonsense").await.unwrap_err().code(), Code::InvalidRequest);
    cluster.stop().await
}
