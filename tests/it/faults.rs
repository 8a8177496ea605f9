//! Faults between controller and hosts, and the death of either: every accepted job ends done or
//! rolled back, and what the database says is what is there.

use anyhow::Context as _;
use futures_util::future::join_all;
use harness::cluster::{Cluster, Setup};
use harness::sim::{Fault, What};
use harness::wait::until;
use serde_json::json;
use shared::api::image::Image;
use shared::api::job::{Job, JobRef, JobState};
use shared::api::network::Network;
use shared::api::vm::Vm;
use shared::error::Code;
use shared::state::vm::VmState;

use super::vm::{ready, ready_with};

/// Makes `n` VMs at once and waits for their jobs.
async fn create(cluster: &Cluster, image: &Image, network: &Network, n: usize) -> anyhow::Result<Vec<Job>> {
    let jobs = join_all((0..n).map(|_| async {
        let job: JobRef = cluster.api.post("/v1/vms", &cluster.vm_body(image, network)).await?;
        cluster.api.wait_job(job.job_id).await
    }));
    jobs.await.into_iter().collect()
}

fn succeeded(jobs: &[Job]) -> usize {
    jobs.iter().filter(|job| job.state == JobState::Succeeded).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_late_doubled_and_reordered_callbacks_change_nothing() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let kinds =
        [What::Defer, What::CallbackTwice, What::CallbackLate { ms: 300 }, What::CallbackReordered, What::CallbackLost];
    for what in kinds {
        let fault = cluster.sim.faults().add(Fault::new("*", what.clone()));
        let jobs = create(&cluster, &image, &network, 3).await?;
        assert_eq!(succeeded(&jobs), 3, "{what:?}: {:?}", jobs.iter().map(|j| &j.error).collect::<Vec<_>>());
        assert!(cluster.sim.faults().remove(fault) >= 3);
    }
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_host_rolls_back_without_a_trace() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    cluster.vm(&image, &network).await?;
    let before = cluster.snapshot().await?;
    let kinds = [
        What::Fail { code: Code::HostFailed },
        What::FailHalfway { code: Code::NoSpace },
        What::FailAfter { code: Code::HostFailed },
        What::Fail { code: Code::Internal },
    ];
    for what in kinds {
        cluster.sim.faults().add(Fault::new("vm/ensure", what.clone()).times(1));
        let job = create(&cluster, &image, &network, 1).await?.remove(0);
        assert_eq!(job.state, JobState::Failed, "{what:?}");
        assert!(job.error.is_some() && !job.rolled_back.is_empty());
        cluster.assert_clean(&before).await?;
        cluster.sim.faults().clear();
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_or_answer_that_is_lost_is_sent_again() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    for what in [What::DropBefore, What::DropAfter] {
        cluster.sim.faults().add(Fault::new("vm/ensure", what.clone()).times(1));
        let jobs = create(&cluster, &image, &network, 2).await?;
        assert_eq!(succeeded(&jobs), 2, "{what:?}: {:?}", jobs.iter().map(|j| &j.error).collect::<Vec<_>>());
    }
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_the_middle_of_a_command_finishes_it_afterwards() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    for what in [What::RestartHalfway, What::RestartAfter] {
        cluster.sim.faults().add(Fault::new("vm/*", what.clone()).times(1));
        let jobs = create(&cluster, &image, &network, 2).await?;
        assert_eq!(succeeded(&jobs), 2, "{what:?}: {:?}", jobs.iter().map(|j| &j.error).collect::<Vec<_>>());
    }
    let vm: Vm = cluster.vm(&image, &network).await?;
    for (verb, path) in [("stop", "vm/stop"), ("start", "vm/ensure"), ("reboot", "vm/reboot"), ("pause", "vm/pause")] {
        cluster.sim.faults().add(Fault::new(path, What::RestartHalfway).times(1));
        cluster.vm_do(vm.id, verb).await?;
    }
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_host_hangs_is_cancelled_and_rolled_back() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let before = cluster.snapshot().await?;
    let fault = cluster.sim.faults().add(Fault::new("vm/ensure", What::Hang).times(1));
    let accepted: JobRef = cluster.api.post("/v1/vms", &cluster.vm_body(&image, &network)).await?;
    until("the host hangs", async || cluster.sim.faults().hits(fault) == 1).await?;
    let path = format!("/v1/jobs/{}", accepted.job_id);
    cluster.api.post::<Job>(&format!("{path}/cancel"), &json!({})).await?;
    let job = cluster.api.wait_job(accepted.job_id).await?;
    assert_eq!((job.state, job.cancel_requested), (JobState::Cancelled, true));
    // Once more, for whoever did not hear the first answer; a job that is done cannot be cancelled.
    cluster.api.post::<Job>(&format!("{path}/cancel"), &json!({})).await?;
    cluster.assert_clean(&before).await?;
    let done = create(&cluster, &image, &network, 1).await?.remove(0);
    let late = cluster.api.post::<Job>(&format!("/v1/jobs/{}/cancel", done.id), &json!({})).await;
    assert_eq!(late.unwrap_err().code(), Code::InvalidState);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn undoing_that_fails_is_owed_until_the_host_can_do_it() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let before = cluster.snapshot().await?;
    let faults = cluster.sim.faults();
    faults.add(Fault::new("vm/ensure", What::FailAfter { code: Code::HostFailed }).times(1));
    let refusal = faults.add(Fault::new("vm/delete", What::Fail { code: Code::HostFailed }));
    let job = create(&cluster, &image, &network, 1).await?.remove(0);
    assert_eq!((job.state, job.cleanup_owed.len()), (JobState::Failed, 1));
    assert_eq!(cluster.sim.hosts()[0].state().vms.len(), 1, "it is still there");
    faults.remove(refusal);
    cluster.assert_clean(&before).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_faults_leaves_everything_in_order() -> anyhow::Result<()> {
    let (cluster, image, network) = ready_with(Setup { deferred: 0.3, ..Setup::default() }).await?;
    cluster.host().await?;
    let faults = cluster.sim.faults();
    faults.add(Fault::new("vm/*", What::FailHalfway { code: Code::HostFailed }).likely(0.15));
    faults.add(Fault::new("*", What::DropAfter).likely(0.1));
    faults.add(Fault::new("*", What::DropBefore).likely(0.1));
    faults.add(Fault::new("*", What::CallbackTwice).likely(0.2));
    faults.add(Fault::new("*", What::CallbackLate { ms: 200 }).likely(0.2));
    faults.add(Fault::new("*", What::RestartHalfway).likely(0.03));
    let jobs = create(&cluster, &image, &network, 40).await?;
    let vms: Vec<_> = jobs.iter().filter(|job| job.state == JobState::Succeeded).map(|job| job.resource.id).collect();
    assert!(!vms.is_empty());
    let accepted = join_all(vms.iter().enumerate().map(|(n, id)| {
        let path = format!("/v1/vms/{id}/{}", ["stop", "reboot", "pause"][n % 3]);
        let api = cluster.api.clone();
        async move { api.post::<JobRef>(&path, &json!({})).await }
    }))
    .await;
    for job in accepted.into_iter().flatten() {
        cluster.api.wait_job(job.job_id).await?;
    }
    faults.clear();
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_finishes_what_it_had_accepted() -> anyhow::Result<()> {
    let (mut cluster, image, network) = ready_with(Setup { process: true, ..Setup::default() }).await?;
    // Work that takes a while, so that the kill falls into the middle of it.
    cluster.sim.faults().add(Fault::new("vm/*", What::Delay { ms: 150 }));
    for _ in 0..4 {
        let jobs = join_all(
            (0..6).map(|_| async { cluster.api.post::<JobRef>("/v1/vms", &cluster.vm_body(&image, &network)).await }),
        )
        .await;
        let jobs: Vec<_> = jobs.into_iter().collect::<Result<_, _>>()?;
        cluster.kill().await?;
        cluster.run().await?;
        for job in jobs {
            let job = cluster.api.wait_job(job.job_id).await?;
            assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
        }
    }
    cluster.assert_consistent().await?;
    assert_eq!(cluster.database.count("SELECT COUNT(*) FROM vm").await?, 24);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_with_202_is_there_after_a_kill() -> anyhow::Result<()> {
    let (mut cluster, image, network) = ready_with(Setup { process: true, ..Setup::default() }).await?;
    cluster.sim.faults().add(Fault::new("vm/ensure", What::Delay { ms: 200 }));
    for _ in 0..5 {
        let body = cluster.vm_body(&image, &network);
        let job: JobRef = cluster.api.post("/v1/vms", &body).await?;
        // At once, with no time for anything but the answer.
        cluster.kill().await?;
        cluster.run().await?;
        assert_eq!(cluster.api.wait_job(job.job_id).await?.state, JobState::Succeeded);
        let vm = cluster.vm_becomes(body.id.unwrap_or_default(), VmState::Running).await?;
        assert_eq!(vm.name, body.name);
    }
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_by_an_hour_stops_nothing() -> anyhow::Result<()> {
    const HOUR: i64 = 3_600_000;
    let (cluster, image, network) = ready_with(Setup { deferred: 0.5, ..Setup::default() }).await?;
    let vm = cluster.vm(&image, &network).await?;
    let clock = cluster.app().context("the controller runs here")?.context().deps.clock.clone();
    // Back, forth over where it was, and right again; each in the middle of a job.
    for (step, verb) in [(-HOUR, "stop"), (2 * HOUR, "start"), (-HOUR, "reboot")] {
        let late = cluster.sim.faults().add(Fault::new("vm/*", What::CallbackLate { ms: 500 }).times(1));
        let job = cluster.vm_verb(vm.id, verb).await?;
        until("the host works on it", async || cluster.sim.faults().hits(late) == 1).await?;
        clock.step(step);
        assert_eq!(cluster.api.wait_job(job.job_id).await?.state, JobState::Succeeded, "{verb}");
        let jobs = create(&cluster, &image, &network, 3).await?;
        assert_eq!(succeeded(&jobs), 3, "{step}: {:?}", jobs.iter().map(|j| &j.error).collect::<Vec<_>>());
    }
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_and_woken_host_does_nothing_twice() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let host = cluster.sim_host(vm.host_id)?;
    cluster.sim.faults().add(Fault::new("vm/stop", What::Delay { ms: 100 }));
    host.freeze();
    let stop: JobRef = cluster.api.post(&format!("/v1/vms/{}/stop", vm.id), &json!({ "mode": "force" })).await?;
    host.thaw();
    let job = cluster.api.wait_job(stop.job_id).await?;
    assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_leaves_a_vm_otherwise_than_it_says_is_found_out() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    // The host stops the VM, fails to start it again, and says so only after it was pinged and
    // compared while the job still held the VM.
    let faults = cluster.sim.faults();
    faults.add(Fault::new("vm/reboot", What::FailHalfway { code: Code::HostFailed }).times(1));
    faults.add(Fault::new("vm/reboot", What::CallbackLate { ms: 3000 }).times(1));
    let reboot = cluster.vm_verb(vm.id, "reboot").await?;
    assert_eq!(cluster.api.fail(&reboot).await?, Code::HostFailed);
    cluster.vm_becomes(vm.id, VmState::Stopped).await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}
