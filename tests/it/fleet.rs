//! Several controllers: they share the work, and nothing that was accepted is lost, doubled or left behind
//! when one of them, or what they stand on, is killed, frozen, stopped or cut off.
//!
//! Each test has a message broker, a database server and controllers of its own. See `make chaos` for the
//! same at random.

mod consoles;
mod members;
mod steps;
mod tables;
mod traces;
mod ways;

use std::sync::Arc;
use std::time::Duration;

use harness::client::Call;
use harness::fleet::{Fleet, Load, Tally};
use harness::proxy::Link;
use harness::sim::{Action, Fate, Fault, What};
use harness::wait::until;
use harness::{chaos, cmd};
use reqwest::Method;
use serde_json::json;
use shared::api::job::{JobRef, JobState};
use shared::api::vm::CreateVm;
use shared::id::{ResourceId, VmId};
use shared::wire::vm::PowerState;

/// Users at work during each test.
const USERS: u64 = 3;

/// Ends the load, has everything come to rest, and checks all of it.
async fn rest(fleet: &Fleet, load: Load) -> anyhow::Result<Tally> {
    let problems = load.end().await;
    fleet.heal().await?;
    let tally = fleet.assert_consistent().await;
    if tally.is_err() || !problems.is_empty() {
        eprintln!("{}", fleet.logs(60));
    }
    let tally = tally?;
    eprintln!("{tally}");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(tally.accepted > 0);
    Ok(tally)
}

/// Waits until the users have seen this many more jobs end.
async fn more(load: &Load, jobs: usize) -> anyhow::Result<()> {
    let goal = load.done() + jobs;
    until(&format!("{jobs} more jobs end"), async || load.done() >= goal).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_controller_loses_no_work() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 1);
    more(&load, 20).await?;
    until("VMs belong to several controllers", async || fleet.owners().await.is_ok_and(|all| all.len() > 1)).await?;
    // A command whose outcome is posted to a controller that is no more.
    let victim = Arc::clone(&fleet.controllers[1]);
    let id = fleet.id_owned_by(victim.id()?).await?;
    let late = fleet.sim.faults().add(Fault::new("vm/ensure", What::CallbackLate { ms: 3000 }));
    let mut body = serde_json::to_value(fleet.vm_body(&fleet.image, &fleet.network))?;
    body["id"] = serde_json::to_value(id)?;
    let job: JobRef = fleet.api.accepted(Method::POST, "/v1/vms", Some(&body)).await?;
    until("the host works on it", async || fleet.sim.faults().hits(late) > 0 && commanded(&fleet, id)).await?;
    victim.kill().await?;
    let other = fleet.id_owned_by(victim.id()?).await?;
    let served = fleet.until_served(other, 0).await?;
    let ended = fleet.api.wait_job(job.job_id).await?;
    eprintln!("served by others after {served:?}");
    assert_eq!(ended.state, JobState::Succeeded, "{:?}", ended.error);
    fleet.sim.faults().clear();
    more(&load, 10).await?;
    victim.start().await?;
    more(&load, 10).await?;
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_controller_had_in_hand_is_asked_for_again_though_it_is_back_at_once() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 2).await?;
    let victim = Arc::clone(&fleet.controllers[1]);
    let id = VmId::from_uuid(fleet.id_owned_by(victim.id()?).await?);
    fleet.vm_as(&CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) }).await?;
    let vms = fleet.database.hold_vms().await?;
    let path = format!("/v1/vms/{id}/stop");
    let asking = async {
        let stop = Call::new(Method::POST, &path).json(&json!({ "mode": "force" })).header("x-kring-timeout", "80");
        anyhow::Ok(fleet.controllers[0].api()?.send(stop).await?.read::<JobRef>()?)
    };
    let killing = async {
        until("the owner waits for the table", async || {
            let waiting = fleet.database.count("SELECT COUNT(*) FROM pg_locks WHERE NOT granted").await;
            waiting.is_ok_and(|waiting| waiting > 0)
        })
        .await?;
        // Back so soon, as by a service manager, that the other one need not have seen that it was gone.
        victim.kill().await?;
        vms.rollback().await?;
        victim.start().await
    };
    let (accepted, ()) = tokio::try_join!(asking, killing)?;
    let stopped = fleet.api.wait_job(accepted.job_id).await?;
    assert_eq!(stopped.state, JobState::Succeeded, "{:?}", stopped.error);
    fleet.stop().await
}

/// Whether a command about this resource has reached a host.
fn commanded(fleet: &Fleet, resource: uuid::Uuid) -> bool {
    fleet.sim.history().actions().iter().any(|action| action.resource == resource)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_controller_ends_by_itself_when_others_have_taken_over() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 2);
    more(&load, 10).await?;
    let victim = Arc::clone(&fleet.controllers[0]);
    victim.freeze().await?;
    fleet.until_taken_over(&victim).await?;
    more(&load, 10).await?;
    victim.thaw().await?;
    victim.until_ended().await?;
    assert!(victim.log().contains("others have taken over"), "{}", victim.log_tail(20));
    more(&load, 5).await?;
    // A short freeze takes nothing away from it.
    let short = Arc::clone(&fleet.controllers[1]);
    short.freeze().await?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    short.thaw().await?;
    more(&load, 5).await?;
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_stops_in_order_fails_no_call() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 3);
    more(&load, 10).await?;
    for n in [1, 0] {
        fleet.controllers[n].stop().await?;
        more(&load, 5).await?;
        fleet.controllers[n].start().await?;
        fleet.whole().await?;
        more(&load, 5).await?;
    }
    rest(&fleet, load).await?;
    let failed: Vec<_> = fleet.api.history().into_iter().filter(|called| !called.failures.is_empty()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_and_database_may_crash() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 3).await?;
    let load = Load::start(&fleet, USERS, 4);
    more(&load, 10).await?;
    fleet.broker.kill().await?;
    // What each controller owns goes on, reached directly.
    for (n, controller) in fleet.controllers.iter().enumerate() {
        let mine = fleet.id_owned_by(controller.id()?).await?;
        fleet.until_served(mine, n).await?;
    }
    fleet.broker.restart().await?;
    more(&load, 10).await?;
    fleet.postgres.kill().await?;
    fleet.postgres.restart().await?;
    more(&load, 10).await?;
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_may_be_cut_off() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 5);
    more(&load, 10).await?;
    // From the broker, one way and then both: the database still knows it, so it stays a member.
    let first = Arc::clone(&fleet.controllers[0]);
    first.to_broker.set(Link { down: false, ..Link::WHOLE });
    let own = fleet.id_owned_by(first.id()?).await?;
    fleet.until_served(own, 0).await?;
    first.to_broker.set(Link::CUT);
    first.to_broker.break_off();
    let own = fleet.id_owned_by(first.id()?).await?;
    fleet.until_served(own, 0).await?;
    first.to_broker.set(Link::WHOLE);
    more(&load, 10).await?;
    // From the database: the others take over, and it ends when it hears of that.
    let second = Arc::clone(&fleet.controllers[1]);
    second.to_database.set(Link::CUT);
    fleet.until_taken_over(&second).await?;
    more(&load, 10).await?;
    second.to_database.set(Link::WHOLE);
    second.until_ended().await?;
    more(&load, 5).await?;
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_command_of_a_former_owner_is_refused_by_the_host() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 2).await?;
    for agent_forgets in [false, true] {
        let victim = Arc::clone(&fleet.controllers[1]);
        let id = VmId::from_uuid(fleet.id_owned_by(victim.id()?).await?);
        let body = CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) };
        let vm = fleet.vm_as(&body).await?;
        let host = fleet.sim_host(vm.host_id)?;
        // Its owner is frozen while a command is on its way.
        let held = fleet.sim.faults().add(Fault::new("vm/stop", What::Held).times(1));
        let path = format!("/v1/vms/{id}");
        let force = json!({ "mode": "force" });
        let stop: JobRef = fleet.api.accepted(Method::POST, &format!("{path}/stop"), Some(&force)).await?;
        until("the command is on its way", async || fleet.sim.faults().hits(held) == 1).await?;
        victim.freeze().await?;
        fleet.until_taken_over(&victim).await?;
        // The next owner ends the job, and does something else.
        let stopped = fleet.api.wait_job(stop.job_id).await?;
        assert_eq!(stopped.state, JobState::Succeeded, "{:?}", stopped.error);
        let start: JobRef = fleet.api.accepted(Method::POST, &format!("{path}/start"), Some(&json!({}))).await?;
        let started = fleet.api.wait_job(start.job_id).await?;
        assert_eq!(started.state, JobState::Succeeded, "{:?}", started.error);
        if agent_forgets {
            host.restart();
        }
        // Now the old command arrives.
        fleet.sim.faults().remove(held);
        until("it is refused", async || {
            let fate = if agent_forgets { Fate::ForAnother } else { Fate::Stale };
            let refused = |a: &Action| a.resource == id.uuid() && a.path == "vm/stop" && a.fate == fate;
            fleet.sim.history().actions().iter().any(refused)
        })
        .await?;
        let power = host.state().reports().iter().find(|report| report.vm_id == id).map(|report| report.power);
        assert_eq!(power, Some(PowerState::Running), "agent forgets: {agent_forgets}");
        victim.thaw().await?;
        victim.until_ended().await?;
        victim.start().await?;
        fleet.whole().await?;
    }
    let tally = fleet.assert_consistent().await?;
    assert_eq!(tally.stale_refused, 1, "the other one was meant for the agent before: {tally}");
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_command_about_a_vm_that_is_gone_is_refused_by_an_agent_that_has_forgotten_it() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 2).await?;
    let victim = Arc::clone(&fleet.controllers[1]);
    let id = VmId::from_uuid(fleet.id_owned_by(victim.id()?).await?);
    let body = CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) };
    let held = fleet.sim.faults().add(Fault::new("vm/ensure", What::Held).from(&victim.advertised).times(1));
    let create: JobRef = fleet.api.accepted(Method::POST, "/v1/vms", Some(&serde_json::to_value(&body)?)).await?;
    until("the command is on its way", async || fleet.sim.faults().hits(held) == 1).await?;
    victim.freeze().await?;
    fleet.until_taken_over(&victim).await?;
    let path = format!("/v1/vms/{id}");
    let succeeds = async |job: JobRef| -> anyhow::Result<()> {
        let ended = fleet.api.wait_job(job.job_id).await?;
        anyhow::ensure!(ended.state == JobState::Succeeded, "{}: {:?}", ended.kind, ended.error);
        Ok(())
    };
    succeeds(create).await?;
    succeeds(fleet.api.accepted(Method::DELETE, &path, None).await?).await?;
    succeeds(fleet.api.accepted(Method::POST, &format!("{path}/expunge"), Some(&json!({}))).await?).await?;
    // Nothing on the hosts tells any more that there was such a VM.
    fleet.sim.hosts().iter().for_each(|host| host.restart());
    fleet.sim.faults().remove(held);
    until("the old command is refused", async || {
        let refused = |a: &Action| a.resource == id.uuid() && a.fate == Fate::ForAnother && a.path == "vm/ensure";
        fleet.sim.history().actions().iter().any(refused)
    })
    .await?;
    assert!(fleet.sim.hosts().iter().all(|host| !host.state().vms.contains_key(&id)), "it made an orphan");
    victim.thaw().await?;
    victim.until_ended().await?;
    fleet.heal().await?;
    fleet.assert_consistent().await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_at_random_break_nothing() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    for seed in [2, 5] {
        let run = chaos::run(&fleet, seed, Duration::from_secs(8)).await?;
        eprintln!("seed {seed}: {run}");
        assert!(run.breaches.is_empty(), "{}\n{}", run.breaches.join("\n"), run.faults.join("\n"));
    }
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_readme_shows_of_a_cluster_is_what_happens() -> anyhow::Result<()> {
    let program = cmd::program("kring-cluster-demo")?;
    let said = cmd::run(program.as_os_str(), &["--users=2".as_ref(), "--hosts=3".as_ref()]).await?;
    assert!(said.contains("0 lost, 0 stuck, 0 doubled"), "{said}");
    assert!(said.trim_end().ends_with("everything is stopped and removed"), "{said}");
    Ok(())
}
