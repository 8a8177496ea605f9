//! What happens to the controller's process and to its disk: frozen and woken again, no space left. What
//! was accepted is done, and nobody is told that something is done which is not.

use std::ffi::OsStr;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::join_all;
use harness::client::{Call, PATIENCE};
use harness::cluster::{Cluster, Setup};
use harness::cmd::{free_address, freeze, program, run, send_signal, spawn};
use harness::fleet::{Api, Load, Tally};
use harness::sim::{Fault, What};
use harness::wait::{eventually, until};
use reqwest::Method;
use shared::api::image::Image;
use shared::api::job::{JobRef, JobState};
use shared::api::network::Network;
use shared::api::vm::Vm;
use shared::api::zone::{CreateZone, Zone};
use shared::error::Code;
use shared::units::Bytes;

use super::vm::{ready_with, zones};

/// Longer than a controller may be silent before others would take over.
const FROZEN: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_was_frozen_loses_no_work() -> anyhow::Result<()> {
    let (mut cluster, image, network) = ready_with(Setup { process: true, ..Setup::default() }).await?;
    let before = cluster.vm(&image, &network).await?;
    cluster.sim.faults().add(Fault::new("vm/ensure", What::CallbackLate { ms: 2000 }));
    let jobs = join_all(
        (0..5).map(|_| async { cluster.api.post::<JobRef>("/v1/vms", &cluster.vm_body(&image, &network)).await }),
    );
    let jobs = jobs.await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let pid = cluster.pid().unwrap_or_default();
    freeze(pid).await?;
    tokio::time::sleep(FROZEN).await;
    send_signal(pid, "-CONT").await?;
    // Nobody else was there to take over, so it goes on, as the same process.
    eventually("it serves again", async || {
        anyhow::ensure!(!cluster.has_ended()?, "{}", std::fs::read_to_string(cluster.log_file())?);
        let answer = cluster.api.send(Call::new(Method::GET, "/readyz")).await?;
        anyhow::ensure!(answer.status == 200, "{}", answer.text);
        Ok(())
    })
    .await?;
    for job in &jobs {
        assert_eq!(cluster.api.wait_job(job.job_id).await?.state, JobState::Succeeded);
    }
    cluster.vm(&image, &network).await?;
    assert_eq!(cluster.get_vm(before.id).await?.id, before.id);
    cluster.assert_consistent().await?;
    cluster.stop().await
}

/// Writes until no space is left.
fn fill(path: &Path) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(path)?;
    for piece in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; piece]).is_ok() {}
    }
    Ok(())
}

/// A controller with its data on a file system of its own; `None`, with the reason, where there is none to be had.
async fn on_a_disk_of_its_own(setup: Setup) -> anyhow::Result<Option<(Cluster, Image, Network)>> {
    if std::env::var("KRING_TEST_POSTGRES").is_ok_and(|url| !url.is_empty()) {
        eprintln!("skipped: the disk of a database server is the server's business");
        return Ok(None);
    }
    match ready_with(setup).await {
        Ok(ready) => Ok(Some(ready)),
        Err(error) if error.to_string().contains("mount") => {
            eprintln!("skipped: a disk of its own cannot be mounted here: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_changes_and_nothing_accepted_is_lost() -> anyhow::Result<()> {
    let setup = Setup { disk: Some(Bytes::mib(64)), ..Setup::default() };
    let Some((mut cluster, image, network)) = on_a_disk_of_its_own(setup).await? else { return Ok(()) };
    let vm = cluster.vm(&image, &network).await?;
    // A job that is on a host while the disk becomes full.
    cluster.sim.faults().add(Fault::new("vm/ensure", What::CallbackLate { ms: 3000 }).times(1));
    let on_its_way: JobRef = cluster.api.post("/v1/vms", &cluster.vm_body(&image, &network)).await?;
    let filler = cluster.data_dir().join("filler");
    fill(&filler)?;
    let (mut made, began) = (Vec::new(), Instant::now());
    let refused = loop {
        let body = CreateZone { id: None, name: cluster.name("full"), description: "d".repeat(200) };
        match cluster.api.post::<Zone>("/v1/zones", &body).await {
            Ok(zone) => made.push(zone),
            Err(failure) => break failure,
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "the disk does not become full");
    };
    assert_eq!(refused.code(), Code::NoSpace, "{refused}");
    assert!(refused.to_string().contains("disk"), "{refused}");
    // As long as a heartbeat may be missing, and longer: who reads is served.
    let full = Instant::now();
    while full.elapsed() < FROZEN {
        assert_eq!(cluster.api.get::<Vm>(&format!("/v1/vms/{}", vm.id)).await?.id, vm.id);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let listed = zones(&cluster).await?;
    assert!(made.iter().all(|zone| listed.contains(&zone.id)), "what was accepted is there");
    std::fs::remove_file(&filler)?;
    until("changes are accepted again", async || {
        let body = CreateZone { id: None, name: cluster.name("again"), description: String::new() };
        cluster.api.post::<Zone>("/v1/zones", &body).await.is_ok()
    })
    .await?;
    assert_eq!(cluster.api.wait_job(on_its_way.job_id).await?.state, JobState::Succeeded);
    cluster.vm(&image, &network).await?;
    cluster.assert_consistent().await?;
    let before = zones(&cluster).await?;
    cluster.restart().await?;
    assert_eq!(zones(&cluster).await?, before, "a restart finds what was accepted");
    cluster.assert_consistent().await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_becomes_full_under_load_loses_nothing() -> anyhow::Result<()> {
    let setup = Setup { disk: Some(Bytes::mib(64)), process: true, deferred: 0.5, ..Setup::default() };
    let Some((mut cluster, image, network)) = on_a_disk_of_its_own(setup).await? else { return Ok(()) };
    let api = Arc::new(Api::new(vec![cluster.api.clone()]));
    cluster.sim.history().record();
    let load = Load::start_with(&api, &cluster.vm_body(&image, &network), &[Code::NoSpace], 4, 1);
    let more = async |jobs: usize| {
        let goal = load.done() + jobs;
        until(&format!("{jobs} more jobs end"), async || load.done() >= goal).await
    };
    let filler = cluster.data_dir().join("filler");
    for _ in 0..2 {
        more(10).await?;
        fill(&filler)?;
        // The users may all wait for jobs that cannot go on; somebody else is refused.
        until("changes are refused", async || {
            let body = CreateZone { id: None, name: cluster.name("full"), description: "d".repeat(200) };
            let made = cluster.api.post::<Zone>("/v1/zones", &body).await;
            made.is_err_and(|refused| refused.code() == Code::NoSpace)
        })
        .await?;
        // As long as a heartbeat may be missed, and longer: who reads is served, and nothing ends.
        let full = Instant::now();
        while full.elapsed() < FROZEN {
            cluster.api.get::<serde_json::Value>("/v1/vms?limit=5").await?;
            assert!(!cluster.has_ended()?, "{}", std::fs::read_to_string(cluster.log_file())?);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::fs::remove_file(&filler)?;
        more(10).await?;
    }
    let problems = load.end().await;
    assert!(problems.is_empty(), "{}\n{}", problems.join("\n"), std::fs::read_to_string(cluster.log_file())?);
    cluster.assert_consistent().await?;
    let tally = Tally::of(&cluster.database, &api, &cluster.sim).await?;
    let refused = api.history().iter().filter(|called| called.refused == Some(Code::NoSpace)).count();
    eprintln!("{tally}; {refused} refused for want of space");
    tally.check()?;
    assert!(tally.accepted >= 40 && tally.rolled_back < tally.accepted / 2, "{tally}");
    let before = cluster.snapshot().await?;
    cluster.restart().await?;
    cluster.assert_clean(&before).await?;
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_to_try_things_on_comes_with_one_command_and_leaves_nothing() -> anyhow::Result<()> {
    let (kring, folder) = (program("kring")?, tempfile::tempdir()?);
    let log = folder.path().join("dev.log");
    let port = free_address(Ipv4Addr::LOCALHOST.into())?.port().to_string();
    let args = ["dev", "--hosts", "3", "--port", &port].map(OsStr::new);
    let mut dev = spawn(kring.as_os_str(), &args, &log)?;
    let config = eventually("it says how it is used", async || {
        let said = std::fs::read_to_string(&log)?;
        anyhow::ensure!(dev.try_wait()?.is_none(), "{said}");
        let line = said.lines().find_map(|line| line.trim().strip_prefix("export KRING_CONFIG="));
        line.map(str::to_string).with_context(|| said.clone())
    })
    .await?;
    let ask = async |words: &str| {
        let args = words.split(' ').chain(["--config", &config]).map(OsStr::new).collect::<Vec<_>>();
        run(kring.as_os_str(), &args).await
    };
    assert_eq!(ask("host list -q connection=connected --count").await?.trim(), "3");
    ask("image create tiny --url http://images.example/tiny.qcow2").await?;
    ask("network create lan --cidr 10.77.0.0/24").await?;
    ask("vm create one --image tiny --vcpus 1 --memory 256MiB --network lan").await?;
    assert!(ask("vm list -o json").await?.contains("\"running\""));
    send_signal(dev.id().context("it runs")?, "-INT").await?;
    assert!(dev.wait().await?.success(), "{}", std::fs::read_to_string(&log)?);
    assert!(!Path::new(&config).exists());
    until("nobody listens any more", async || TcpListener::bind(format!("127.0.0.1:{port}")).is_ok()).await
}
