//! VMs: every verb, on simulated hosts; what fits and what does not; what may be asked in which state.

use std::collections::HashSet;

use futures_util::future::join_all;
use harness::client::Call;
use harness::cluster::{Cluster, Setup};
use harness::sim::state::is_active;
use harness::wait::{eventually, until};
use reqwest::Method;
use serde_json::json;
use shared::api::host::{Host, HostConnection};
use shared::api::image::Image;
use shared::api::job::JobRef;
use shared::api::network::Network;
use shared::api::page::Page;
use shared::api::vm::{ConsoleLog, PlacementReport, StopMode, StopVm, UpdateVm, Vm};
use shared::api::volume::{AttachVolume, Volume};
use shared::api::zone::Zone;
use shared::error::Code;
use shared::id::{HostId, VmId, ZoneId};
use shared::state::vm::VmState;
use shared::state::volume::VolumeState;
use shared::units::Bytes;
use shared::wire::vm::PowerState;

/// A cluster with a host, an image and a network.
pub async fn ready() -> anyhow::Result<(Cluster, Image, Network)> {
    ready_with(Setup::default()).await
}

/// The same, made otherwise.
pub async fn ready_with(setup: Setup) -> anyhow::Result<(Cluster, Image, Network)> {
    let cluster = Cluster::start_with(setup).await?;
    cluster.host().await?;
    let image = cluster.image().await?;
    let network = cluster.network().await?;
    Ok((cluster, image, network))
}

/// Ids of all zones.
pub async fn zones(cluster: &Cluster) -> anyhow::Result<HashSet<ZoneId>> {
    let (mut found, mut cursor) = (HashSet::new(), String::new());
    loop {
        let page: Page<Zone> = cluster.api.get(&format!("/v1/zones?limit=500{cursor}")).await?;
        found.extend(page.items.iter().map(|zone| zone.id));
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}

fn power(cluster: &Cluster, vm: &Vm) -> Option<PowerState> {
    let host = cluster.sim_host(vm.host_id).ok()?;
    let report = host.state().report(vm.id).ok();
    report.map(|r| r.power)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_through_all_its_verbs_and_leaves_nothing() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let before = cluster.snapshot().await?;
    let vm = cluster.vm(&image, &network).await?;
    assert_eq!((vm.state, power(&cluster, &vm)), (VmState::Running, Some(PowerState::Running)));
    assert_eq!((vm.nics.len(), vm.vcpus, vm.memory), (1, 1, Bytes::mib(256)));
    let verbs = [
        ("pause", VmState::Paused, PowerState::Paused),
        ("resume", VmState::Running, PowerState::Running),
        ("reboot", VmState::Running, PowerState::Running),
        ("stop", VmState::Stopped, PowerState::Stopped),
        ("start", VmState::Running, PowerState::Running),
    ];
    for (verb, state, there) in verbs {
        cluster.vm_do(vm.id, verb).await?;
        assert_eq!((cluster.get_vm(vm.id).await?.state, power(&cluster, &vm)), (state, Some(there)), "{verb}");
    }
    let delete: JobRef = cluster.api.delete(&format!("/v1/vms/{}", vm.id)).await?;
    cluster.api.succeed(&delete).await?;
    let deleted = cluster.get_vm(vm.id).await?;
    assert_eq!((deleted.state, power(&cluster, &vm)), (VmState::Deleted, None));
    assert!(deleted.deleted_at.is_some());
    cluster.vm_do(vm.id, "recover").await?;
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Stopped);
    cluster.vm_do(vm.id, "start").await?;
    assert_eq!(power(&cluster, &vm), Some(PowerState::Running));
    cluster.remove_vm(vm.id).await?;
    let gone = cluster.api.get::<Vm>(&format!("/v1/vms/{}", vm.id)).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
    cluster.assert_clean(&before).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_not_started_reserves_no_compute() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let mut body = cluster.vm_body(&image, &network);
    body.start = false;
    let vm = cluster.vm_as(&body).await?;
    assert_eq!((vm.state, power(&cluster, &vm)), (VmState::Stopped, Some(PowerState::Stopped)));
    let host: Host = cluster.api.get(&format!("/v1/hosts/{}", vm.host_id.unwrap())).await?;
    assert_eq!((host.capacity.vcpus_reserved, host.capacity.memory_reserved), (0, Bytes(0)));
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_vms_than_fit_exactly_those_that_fit_succeed() -> anyhow::Result<()> {
    // 512 MiB are the host's own, 2 GiB are left: 8 VMs of 256 MiB.
    let host = Some((16, Bytes::mib(512 + 2048)));
    let (cluster, image, network) = ready_with(Setup { host, ..Setup::default() }).await?;
    let jobs = join_all((0..30).map(|_| async {
        let job: JobRef = cluster.api.post("/v1/vms", &cluster.vm_body(&image, &network)).await?;
        anyhow::Ok(cluster.api.wait_job(job.job_id).await?)
    }))
    .await;
    let mut succeeded = 0;
    for job in jobs {
        match job?.error {
            None => succeeded += 1,
            Some(error) => {
                assert_eq!(error.code, Code::NoHostFits);
                assert!(error.chain().contains("memory"), "it says what was short: {}", error.chain());
            }
        }
    }
    assert_eq!(succeeded, 8);
    cluster.assert_consistent().await?;
    let host = cluster.sim.hosts().remove(0);
    assert_eq!(host.state().vms.values().filter(|vm| is_active(vm.power)).count(), 8);
    let host: Host = cluster.api.get(&format!("/v1/hosts/{}", host.id)).await?;
    assert_eq!(host.capacity.memory_reserved, host.capacity.memory_total);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_gives_its_place_away_and_starts_again_when_there_is_room() -> anyhow::Result<()> {
    let host = Some((16, Bytes::mib(512 + 256)));
    let (cluster, image, network) = ready_with(Setup { host, ..Setup::default() }).await?;
    let first = cluster.vm(&image, &network).await?;
    cluster.vm_do(first.id, "stop").await?;
    let second = cluster.vm(&image, &network).await?;
    let refused = cluster.api.post::<JobRef>(&format!("/v1/vms/{}/start", first.id), &json!({})).await;
    let code = match refused {
        Ok(job) => cluster.api.fail(&job).await?,
        Err(failure) => failure.code(),
    };
    assert_eq!(code, Code::NoHostFits);
    assert_eq!(cluster.get_vm(first.id).await?.state, VmState::Stopped);
    cluster.vm_do(second.id, "stop").await?;
    cluster.vm_do(first.id, "start").await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_where_it_would_go_and_changes_nothing() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let before = cluster.snapshot().await?;
    let mut body = cluster.vm_body(&image, &network);
    let plan: PlacementReport = cluster.api.post("/v1/vms?dry_run=true", &body).await?;
    assert_eq!((plan.chosen, plan.considered), (Some(cluster.sim.hosts()[0].id), 1));
    body.memory = Some(Bytes::gib(1000));
    let plan: PlacementReport = cluster.api.post("/v1/vms?dry_run=true", &body).await?;
    assert_eq!(plan.chosen, None);
    let dropped: Vec<_> = plan.filters.iter().filter(|f| f.dropped > 0).collect();
    assert_eq!((dropped.len(), dropped[0].hosts.len()), (1, 1), "{:?}", plan.filters);
    cluster.assert_clean(&before).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_exists_is_the_same_vm_or_a_conflict_that_names_the_difference() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let body = cluster.vm_body(&image, &network);
    let vm = cluster.vm_as(&body).await?;
    let again: JobRef = cluster.api.post("/v1/vms", &body).await?;
    assert_eq!(again.resource.id, shared::id::ResourceId::uuid(vm.id));
    let other = shared::api::vm::CreateVm { memory: Some(Bytes::mib(512)), ..body.clone() };
    let failure = cluster.api.post::<JobRef>("/v1/vms", &other).await.unwrap_err();
    assert_eq!(failure.code(), Code::Conflict);
    assert!(failure.to_string().contains("memory"), "{failure}");
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gives_the_same_job_and_another_body_is_refused() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let mut body = cluster.vm_body(&image, &network);
    body.id = None;
    let send = async |body: &shared::api::vm::CreateVm| {
        let call = Call::new(Method::POST, "/v1/vms").json(body).header("idempotency-key", "one");
        cluster.api.send(call).await?.read::<JobRef>()
    };
    let answers = join_all((0..8).map(|_| send(&body))).await;
    let jobs: HashSet<_> = answers.into_iter().map(|job| job.map(|job| job.job_id)).collect::<Result<_, _>>()?;
    assert_eq!(jobs.len(), 1);
    for job in jobs {
        assert_eq!(cluster.api.wait_job(job).await?.error, None);
    }
    body.vcpus = Some(2);
    assert_eq!(send(&body).await.unwrap_err().code(), Code::IdempotencyMismatch);
    assert_eq!(cluster.database.count("SELECT COUNT(*) FROM vm").await?, 1);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_the_field() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let good = serde_json::to_value(cluster.vm_body(&image, &network))?;
    let long = "x".repeat(64);
    let huge = "x".repeat(65 * 1024);
    let bad = [
        ("name", json!("")),
        ("name", json!("../../etc/passwd")),
        ("name", json!("a'; DROP TABLE vm; --")),
        ("name", json!("<domain type='kvm'/>")),
        ("name", json!("$(reboot)")),
        ("name", json!("机器")),
        ("name", json!("a\u{0}b")),
        ("name", json!(long)),
        ("name", json!(7)),
        ("hostname", json!("a b")),
        ("hostname", json!("-a")),
        ("vcpus", json!(0)),
        ("vcpus", json!(100_000)),
        ("vcpus", json!("1")),
        ("memory", json!(1024)),
        ("memory", json!(-1)),
        ("root_size", json!(1)),
        ("user_data", json!(huge)),
        ("ssh_keys", json!(["not a key\nsecond line"])),
        ("ssh_keys", json!(vec!["ssh-ed25519 AAAA"; 21])),
        ("image_id", json!("../x")),
        ("nics", json!([{ "network_id": network.id, "color": "red" }])),
        ("nics", json!(vec![json!({ "network_id": network.id }); 9])),
        ("surprise", json!(true)),
    ];
    for (field, value) in bad {
        let mut body = good.clone();
        body["id"] = json!(VmId::new());
        body[field] = value.clone();
        let failure = cluster.api.post::<JobRef>("/v1/vms", &body).await.err();
        let failure = failure.unwrap_or_else(|| panic!("{field} = {value} was taken"));
        assert_eq!(failure.code(), Code::InvalidRequest, "{field} = {value}: {failure}");
        assert!(failure.to_string().contains(field), "{field} is named in: {failure}");
    }
    for (field, value) in
        [("image_id", json!(uuid::Uuid::now_v7())), ("nics", json!([{ "network_id": uuid::Uuid::now_v7() }]))]
    {
        let mut body = good.clone();
        body["id"] = json!(VmId::new());
        body[field] = value;
        let code = cluster.api.post::<JobRef>("/v1/vms", &body).await.unwrap_err().code();
        assert!(matches!(code, Code::NotFound | Code::InvalidRequest), "{field}: {code}");
    }
    assert_eq!(cluster.database.count("SELECT COUNT(*) FROM vm").await?, 0);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_until_its_vm_is_deleted() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let first = cluster.vm_body(&image, &network);
    let vm = cluster.vm_as(&first).await?;
    let mut second = cluster.vm_body(&image, &network);
    second.name = first.name.clone();
    let failure = cluster.api.post::<JobRef>("/v1/vms", &second).await.unwrap_err();
    assert_eq!(failure.code(), Code::NameTaken);
    let third = cluster.vm(&image, &network).await?;
    let update = UpdateVm { name: Some(first.name.clone()), ..UpdateVm::default() };
    let failure = cluster.api.patch::<Vm>(&format!("/v1/vms/{}", third.id), &update).await.unwrap_err();
    assert_eq!(failure.code(), Code::NameTaken);
    let delete: JobRef = cluster.api.delete(&format!("/v1/vms/{}", vm.id)).await?;
    cluster.api.succeed(&delete).await?;
    let heir = cluster.vm_as(&second).await?;
    // Two may not have the name, so the first one cannot come back under it.
    let job = cluster.vm_verb(vm.id, "recover").await;
    let code = match job {
        Ok(job) => cluster.api.fail(&job).await?,
        Err(error) => error.downcast::<harness::client::Failure>()?.code(),
    };
    assert_eq!(code, Code::NameTaken);
    cluster.remove_vm(heir.id).await?;
    cluster.vm_do(vm.id, "recover").await?;
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_change_only_while_a_vm_is_stopped() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let path = format!("/v1/vms/{}", vm.id);
    let resize = UpdateVm { vcpus: Some(3), memory: Some(Bytes::mib(512)), ..UpdateVm::default() };
    assert_eq!(cluster.api.patch::<Vm>(&path, &resize).await.unwrap_err().code(), Code::InvalidState);
    let rename = UpdateVm { name: Some("renamed".parse()?), ..UpdateVm::default() };
    assert_eq!(cluster.api.patch::<Vm>(&path, &rename).await?.name.as_str(), "renamed");
    cluster.vm_do(vm.id, "stop").await?;
    cluster.api.patch::<Vm>(&path, &resize).await?;
    cluster.vm_do(vm.id, "start").await?;
    let domain = cluster.sim_host(vm.host_id)?.state().vms[&vm.id].clone();
    assert_eq!((domain.vcpus, domain.memory), (3, Bytes::mib(512)));
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verb_that_the_state_does_not_allow_is_refused_and_not_linked() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    for verb in ["start", "resume", "recover", "expunge"] {
        assert!(!vm.links.contains_key(verb), "a running VM has a link to {verb}");
        let failure = cluster.api.post::<JobRef>(&format!("/v1/vms/{}/{verb}", vm.id), &json!({})).await;
        assert_eq!(failure.unwrap_err().code(), Code::InvalidState, "{verb}");
    }
    for verb in ["stop", "reboot", "pause", "delete"] {
        assert!(vm.links.contains_key(verb), "a running VM has no link to {verb}: {:?}", vm.links.keys());
    }
    let missing = VmId::new();
    let failure = cluster.api.post::<JobRef>(&format!("/v1/vms/{missing}/stop"), &json!({})).await;
    assert_eq!(failure.unwrap_err().code(), Code::NotFound);
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Running);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_listen_is_left_running_or_ended_as_asked() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    cluster.sim_host(vm.host_id)?.state().deaf_guests = true;
    let path = format!("/v1/vms/{}/stop", vm.id);
    let only = StopVm { mode: StopMode::GracefulOnly, timeout_s: Some(1) };
    let job: JobRef = cluster.api.post(&path, &only).await?;
    assert_eq!(cluster.api.fail(&job).await?, Code::InvalidState);
    assert_eq!(cluster.get_vm(vm.id).await?.state, VmState::Running);
    let then_force = StopVm { mode: StopMode::Graceful, timeout_s: Some(1) };
    let job: JobRef = cluster.api.post(&path, &then_force).await?;
    cluster.api.succeed(&job).await?;
    assert_eq!(
        (cluster.get_vm(vm.id).await?.state, power(&cluster, &vm)),
        (VmState::Stopped, Some(PowerState::Stopped))
    );
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_attached_and_detached_hot_and_cold() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let before = cluster.snapshot().await?;
    let vm = cluster.vm(&image, &network).await?;
    let volume = cluster.volume(Bytes::gib(1)).await?;
    let path = format!("/v1/volumes/{}", volume.id);
    for stopped in [false, true] {
        let attach: JobRef = cluster.api.post(&format!("{path}/attach"), &AttachVolume { vm_id: vm.id }).await?;
        cluster.api.succeed(&attach).await?;
        let now: Volume = cluster.api.get(&path).await?;
        assert_eq!((now.state, now.vm_id, now.device.as_deref()), (VolumeState::Attached, Some(vm.id), Some("vdb")));
        let disks = cluster.sim_host(vm.host_id)?.state().vms[&vm.id].disks.clone();
        assert!(disks.contains(&(volume.id, "vdb".to_string())), "{disks:?}");
        let code = cluster.api.delete::<JobRef>(&path).await.unwrap_err().code();
        assert!(matches!(code, Code::InUse | Code::InvalidState), "{code}");
        let detach: JobRef = cluster.api.post(&format!("{path}/detach"), &json!({})).await?;
        cluster.api.succeed(&detach).await?;
        let now: Volume = cluster.api.get(&path).await?;
        assert_eq!((now.state, now.vm_id), (VolumeState::Available, None));
        if !stopped {
            cluster.vm_do(vm.id, "stop").await?;
        }
    }
    let delete: JobRef = cluster.api.delete(&path).await?;
    cluster.api.succeed(&delete).await?;
    cluster.remove_vm(vm.id).await?;
    cluster.assert_clean(&before).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_serial_log_is_read_from_the_host() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let log: ConsoleLog = cluster.api.get(&format!("/v1/vms/{}/console/log", vm.id)).await?;
    assert!(log.text.contains(&vm.id.to_string()), "{}", log.text);
    assert_eq!(log.next_offset, log.text.len() as u64);
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certain_host_is_taken_or_the_vm_is_refused() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let second = cluster.host().await?;
    let mut body = cluster.vm_body(&image, &network);
    body.host_id = Some(second.id);
    assert_eq!(cluster.vm_as(&body).await?.host_id, Some(second.id));
    let mut nowhere = cluster.vm_body(&image, &network);
    nowhere.host_id = Some(HostId::new());
    let code = match cluster.api.post::<JobRef>("/v1/vms", &nowhere).await {
        Ok(job) => cluster.api.fail(&job).await?,
        Err(failure) => failure.code(),
    };
    assert!(matches!(code, Code::NoHostFits | Code::NotFound), "{code}");
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_vms_are_expunged_after_their_time_past_those_whose_host_is_away() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    cluster.set("host.ping_interval", json!(0.2)).await?;
    let away = cluster.vm(&image, &network).await?;
    let frozen = cluster.sim_host(away.host_id)?;
    cluster.host().await?;
    let here = eventually("a VM is put on the other host", async || {
        let vm = cluster.vm(&image, &network).await?;
        anyhow::ensure!(vm.host_id != away.host_id, "it is on the same");
        Ok(vm)
    })
    .await?;
    for vm in [&away, &here] {
        let job: JobRef = cluster.api.delete(&format!("/v1/vms/{}", vm.id)).await?;
        cluster.api.succeed(&job).await?;
    }
    frozen.freeze();
    cluster.connected(frozen.id, HostConnection::Disconnected).await?;
    cluster.set("vm.expunge_after", 0.into()).await?;
    let gone = async |vm: &Vm| cluster.get_vm(vm.id).await.is_err();
    until("the deleted VM is expunged", async || gone(&here).await).await?;
    assert_eq!(cluster.get_vm(away.id).await?.state, VmState::Deleted, "its host does not answer");
    frozen.thaw();
    until("the other one as well, when its host is back", async || gone(&away).await).await?;
    assert!(!cluster.sim_host(away.host_id)?.state().vms.contains_key(&away.id));
    cluster.stop().await
}
