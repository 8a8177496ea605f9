//! VMs that move between hosts, hosts that are drained, and hosts that come back.

use anyhow::Context as _;
use harness::cluster::Cluster;
use harness::sim::{Fault, What};
use harness::wait::until;
use serde_json::{Value, json};
use shared::api::host::{Host, HostAdminState, HostConnection};
use shared::api::image::Image;
use shared::api::job::{Job, JobRef, JobState};
use shared::api::network::{CreateNetwork, Network, NetworkKind};
use shared::api::vm::{CreateNic, CreateVm, Vm};
use shared::error::Code;
use shared::id::{HostId, VmId};
use shared::state::vm::VmState;
use shared::units::Bytes;

use super::vm::ready;

/// A cluster with two hosts.
async fn two_hosts() -> anyhow::Result<(Cluster, Image, Network)> {
    let ready = ready().await?;
    ready.0.host().await?;
    Ok(ready)
}

async fn migrate(cluster: &Cluster, vm: VmId, host: Option<HostId>) -> anyhow::Result<Job> {
    let job: JobRef = cluster.api.post(&format!("/v1/vms/{vm}/migrate"), &json!({ "host_id": host })).await?;
    cluster.api.wait_job(job.job_id).await
}

/// Whether a VM has a domain on a host.
fn is_on(cluster: &Cluster, vm: VmId, host: HostId) -> bool {
    cluster.sim.host(host).is_some_and(|host| host.state().vms.contains_key(&vm))
}

async fn other_host(cluster: &Cluster, vm: &Vm) -> anyhow::Result<HostId> {
    let hosts = cluster.sim.hosts();
    hosts.iter().map(|host| host.id).find(|id| Some(*id) != vm.host_id).context("another host")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_moves_there_and_back_with_its_disks() -> anyhow::Result<()> {
    let (cluster, image, network) = two_hosts().await?;
    let vm = cluster.vm(&image, &network).await?;
    let volume = cluster.volume(Bytes::mib(64)).await?;
    let attach: JobRef =
        cluster.api.post(&format!("/v1/volumes/{}/attach", volume.id), &json!({ "vm_id": vm.id })).await?;
    cluster.api.succeed(&attach).await?;
    let (from, to) = (vm.host_id.context("a host")?, other_host(&cluster, &vm).await?);
    let job = migrate(&cluster, vm.id, Some(to)).await?;
    assert_eq!((job.state, job.steps.len()), (JobState::Succeeded, 5), "{:?}", job.error);
    let moved = cluster.get_vm(vm.id).await?;
    assert_eq!((moved.host_id, moved.state), (Some(to), VmState::Running));
    assert!(is_on(&cluster, vm.id, to) && !is_on(&cluster, vm.id, from));
    cluster.assert_consistent().await?;
    // Paused it stays paused, and the placement finds the only other host.
    cluster.vm_do(vm.id, "pause").await?;
    assert_eq!(migrate(&cluster, vm.id, None).await?.state, JobState::Succeeded);
    let back = cluster.get_vm(vm.id).await?;
    assert_eq!((back.host_id, back.state), (Some(from), VmState::Paused));
    assert!(back.links.contains_key("migrate"));
    cluster.vm_do(vm.id, "resume").await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_is_refused_with_the_reason() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let path = format!("/v1/vms/{}/migrate", vm.id);
    let refused = async |body: Value| cluster.api.post::<JobRef>(&path, &body).await.unwrap_err();
    assert_eq!(refused(json!({ "host_id": vm.host_id })).await.code(), Code::InvalidRequest);
    assert_eq!(refused(json!({ "host_id": HostId::new() })).await.code(), Code::InvalidRequest);
    // The only host is the one that it is on.
    let job = migrate(&cluster, vm.id, None).await?;
    let error = job.error.context("no other host")?;
    assert!(error.code == Code::NoHostFits && error.chain().contains("or the VM is on it"), "{}", error.chain());
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Running);
    cluster.vm_do(vm.id, "stop").await?;
    assert_eq!(refused(json!({})).await.code(), Code::InvalidState);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_a_bridged_network_goes_only_where_the_uplink_is() -> anyhow::Result<()> {
    let (cluster, image, _) = two_hosts().await?;
    let network = async |uplink: &str, cidr: &str| -> anyhow::Result<Network> {
        let body = CreateNetwork {
            id: None,
            name: cluster.name("net"),
            kind: NetworkKind::Bridged,
            cidr: cidr.parse()?,
            cluster_id: None,
            gateway: None,
            dns: Vec::new(),
            mtu: None,
            uplink: Some(uplink.to_string()),
            vlan: None,
        };
        Ok(cluster.api.post("/v1/networks", &body).await?)
    };
    let (there, nowhere) = (network("eth0", "10.90.0.0/24").await?, network("eth9", "10.91.0.0/24").await?);
    let vm = cluster.vm(&image, &there).await?;
    assert_eq!(migrate(&cluster, vm.id, None).await?.state, JobState::Succeeded);
    let nics = vec![CreateNic { network_id: nowhere.id, ip: None }];
    let job: JobRef = cluster.api.post("/v1/vms", &CreateVm { nics, ..cluster.vm_body(&image, &there) }).await?;
    let error = cluster.api.wait_job(job.job_id).await?.error.context("no host has it")?;
    assert!(error.code == Code::NoHostFits && error.chain().contains("eth9"), "{}", error.chain());
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_true_counts_and_not_what_was_told() -> anyhow::Result<()> {
    let (cluster, image, network) = two_hosts().await?;
    for (what, moves) in [
        (What::FailAfter { code: Code::HostFailed }, true),
        (What::DropAfter, true),
        (What::RestartAfter, true),
        (What::FailHalfway { code: Code::HostFailed }, true),
        (What::Fail { code: Code::HostFailed }, false),
    ] {
        let vm = cluster.vm(&image, &network).await?;
        cluster.sim.faults().add(Fault::new("vm/migrate", what.clone()).times(1));
        let job = migrate(&cluster, vm.id, None).await?;
        let now = cluster.get_vm(vm.id).await?;
        assert_eq!(job.state == JobState::Succeeded, moves, "{what:?}: {:?}", job.error);
        assert_eq!((now.host_id != vm.host_id, now.state), (moves, VmState::Running), "{what:?}");
        cluster.sim.faults().clear();
        cluster.assert_consistent().await?;
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_source_goes_away_is_touched_by_nobody_until_it_is_back() -> anyhow::Result<()> {
    let (cluster, image, network) = two_hosts().await?;
    cluster.set("host.ping_interval", json!(0.2)).await?;
    for moved in [false, true] {
        let vm = cluster.vm(&image, &network).await?;
        let (from, to) = (vm.host_id.context("a host")?, other_host(&cluster, &vm).await?);
        let source = cluster.sim.host(from).context("the source")?;
        // It never ends; or it has ended, and nobody is told.
        let what = if moved { What::Unanswered } else { What::Hang };
        let fault = cluster.sim.faults().add(Fault::new("vm/migrate", what));
        let job: JobRef = cluster.api.post(&format!("/v1/vms/{}/migrate", vm.id), &json!({ "host_id": to })).await?;
        until("the source is told to move it", async || {
            cluster.sim.faults().hits(fault) > 0 && is_on(&cluster, vm.id, to) == moved
        })
        .await?;
        source.down();
        cluster.connected(from, HostConnection::Disconnected).await?;
        cluster.api.post::<Job>(&format!("/v1/jobs/{}/cancel", job.job_id), &json!({})).await?;
        let job = cluster.api.wait_job(job.job_id).await?;
        assert!(job.state == JobState::Cancelled && job.cleanup_owed.contains(&"migrate".to_string()), "{job:?}");
        assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Unknown);
        let stop = cluster.api.post::<JobRef>(&format!("/v1/vms/{}/stop", vm.id), &json!({ "mode": "force" })).await;
        assert_eq!(stop.unwrap_err().code(), Code::InvalidState);
        cluster.sim.faults().clear();
        source.up();
        cluster.connected(from, HostConnection::Connected).await?;
        cluster.vm_becomes(vm.id, VmState::Running).await?;
        cluster.assert_consistent().await?;
        let there = cluster.get_vm(vm.id).await?.host_id;
        assert_eq!(there, Some(if moved { to } else { from }));
    }
    cluster.stop().await
}

async fn set_state(cluster: &Cluster, host: HostId, state: HostAdminState) -> anyhow::Result<()> {
    let _: Host = cluster.api.patch(&format!("/v1/hosts/{host}"), &json!({ "admin_state": state })).await?;
    Ok(())
}

async fn maintain(cluster: &Cluster, host: HostId) -> anyhow::Result<Job> {
    let job: JobRef = cluster.api.post(&format!("/v1/hosts/{host}/maintain"), &json!({})).await?;
    cluster.api.wait_job(job.job_id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_moves_what_it_can_and_says_what_stays() -> anyhow::Result<()> {
    let (cluster, image, network) = two_hosts().await?;
    let hosts = cluster.sim.hosts();
    let (first, second) = (hosts[0].id, hosts[1].id);
    let on_first = CreateVm { host_id: Some(first), ..cluster.vm_body(&image, &network) };
    let mut vms = Vec::new();
    for _ in 0..5 {
        let body = CreateVm { id: None, name: cluster.name("vm"), ..on_first.clone() };
        vms.push(cluster.vm_as(&body).await?);
    }
    cluster.vm_do(vms[0].id, "stop").await?;
    // Nobody takes them: they stay, and so does the wish.
    set_state(&cluster, second, HostAdminState::Disabled).await?;
    let job = maintain(&cluster, first).await?;
    let error = job.error.context("they stay")?;
    assert!(error.code == Code::InUse && error.causes.len() == 4, "{}", error.chain());
    assert!(error.causes.iter().all(|cause| cause.contains(&format!("vm {}", vms[1].name)[..3])), "{error:?}");
    let row: Host = cluster.api.get(&format!("/v1/hosts/{first}")).await?;
    assert_eq!(row.admin_state, HostAdminState::Maintenance);
    cluster.assert_consistent().await?;

    set_state(&cluster, second, HostAdminState::Enabled).await?;
    let job = maintain(&cluster, first).await?;
    assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
    for vm in &vms[1..] {
        let now = cluster.get_vm(vm.id).await?;
        assert_eq!((now.host_id, now.state), (Some(second), VmState::Running));
    }
    assert_eq!(cluster.get_vm(vms[0].id).await?.host_id, Some(first), "what is stopped stays with its disks");
    let refused: JobRef =
        cluster.api.post("/v1/vms", &CreateVm { id: None, name: cluster.name("vm"), ..on_first }).await?;
    assert_eq!(cluster.api.wait_job(refused.job_id).await?.error.context("no new VM")?.code, Code::NoHostFits);
    set_state(&cluster, first, HostAdminState::Enabled).await?;
    cluster.vm_do(vms[0].id, "start").await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_on_a_host_that_restarted_is_started_again_unless_it_shall_not() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let runs = cluster.vm(&image, &network).await?;
    let stays = cluster.vm_as(&CreateVm { auto_start: false, ..cluster.vm_body(&image, &network) }).await?;
    let paused = cluster.vm(&image, &network).await?;
    cluster.vm_do(paused.id, "pause").await?;
    let stopped = cluster.vm(&image, &network).await?;
    cluster.vm_do(stopped.id, "stop").await?;
    let host = cluster.sim_host(runs.host_id)?;
    host.reboot();
    for off in [&stays, &paused, &stopped] {
        cluster.vm_becomes(off.id, VmState::Stopped).await?;
    }
    cluster.vm_becomes(runs.id, VmState::Running).await?;
    until("it runs on the host", async || {
        let state = host.state();
        state.vms.values().filter(|vm| vm.power.as_str() == "running").count() == 1
    })
    .await?;
    cluster.assert_consistent().await?;
    // Stopped by its user it stays off, whatever the host does.
    cluster.vm_do(runs.id, "stop").await?;
    host.reboot();
    cluster.assert_consistent().await?;
    assert_eq!(cluster.get_vm(runs.id).await?.state, VmState::Stopped);
    cluster.stop().await
}
