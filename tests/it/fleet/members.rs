//! What users see of several controllers: who is a member with which share, one that is drained and works again, and
//! events and finished jobs at any of them, whoever does the work.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use harness::client::Call;
use harness::fleet::{Fleet, Load};
use harness::wait::eventually;
use reqwest::Method;
use shared::api::controller::{Controller, ControllerState, Ownership};
use shared::api::event::Event;
use shared::api::job::{Job, JobState};
use shared::api::page::Page;
use shared::api::vm::CreateVm;
use shared::id::{ControllerId, ResourceId, VmId};
use uuid::Uuid;

use super::{USERS, more, rest};
use crate::stream;

/// Waits until every controller shows all of them, with their shares of the ring, this one doing what is said, and
/// healthy; and names the same owner of a resource. Answers that owner.
async fn shown(
    fleet: &Fleet,
    one: ControllerId,
    does: ControllerState,
    resource: Uuid,
) -> anyhow::Result<ControllerId> {
    eventually("every controller shows the same", async || {
        let mut owners = Vec::new();
        for through in &fleet.controllers {
            let listed: Page<Controller> = through.api()?.get("/v1/controllers").await?;
            anyhow::ensure!(listed.items.len() == fleet.controllers.len(), "{listed:?}");
            let whole: f64 = listed.items.iter().map(|controller| controller.share).sum();
            anyhow::ensure!((whole - 1.0).abs() < 1e-6, "{listed:?}");
            for controller in &listed.items {
                let wanted = if controller.id == one { does } else { ControllerState::Active };
                let (report, owns) = (&controller.report, controller.share > 0.0);
                anyhow::ensure!(
                    controller.state == wanted && owns == (wanted == ControllerState::Active),
                    "{controller:?}"
                );
                anyhow::ensure!(report.bus.healthy && report.database.healthy, "{controller:?}");
                anyhow::ensure!(report.services.iter().any(|name| name == "vm"), "{controller:?}");
                anyhow::ensure!(!controller.version.is_empty() && controller.generation > 0, "{controller:?}");
            }
            let owner: Ownership = through.api()?.get(&format!("/v1/ring/{resource}")).await?;
            anyhow::ensure!(owner.since_generation <= owner.generation, "{owner:?}");
            owners.push(owner.controller_id);
        }
        owners.dedup();
        anyhow::ensure!(owners.len() == 1, "{owners:?}");
        Ok(owners[0])
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_controller_gives_its_share_away_and_fails_no_call() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 31);
    more(&load, 10).await?;
    let one = fleet.controllers[1].id()?;
    let own = fleet.id_owned_by(one).await?;
    assert_eq!(shown(&fleet, one, ControllerState::Active, own).await?, one);
    let (id, own_id) = (one.uuid().to_string(), own.to_string());
    let drained = fleet.kring(&["controller", "drain", &id, "-o", "json"]).await?;
    assert_eq!(serde_json::from_str::<Controller>(&drained)?.state, ControllerState::Draining);
    assert_ne!(shown(&fleet, one, ControllerState::Draining, own).await?, one);
    // It owns nothing and answers as before.
    fleet.until_served(own, 1).await?;
    more(&load, 10).await?;
    assert!(!fleet.owners().await?.contains_key(&one));
    fleet.kring(&["controller", "activate", &id]).await?;
    assert_eq!(shown(&fleet, one, ControllerState::Active, own).await?, one);
    let listed: Vec<Controller> = serde_json::from_str(&fleet.kring(&["controller", "list", "-o", "json"]).await?)?;
    assert_eq!(listed.iter().filter(|controller| controller.state == ControllerState::Active).count(), 3);
    let owned: Ownership = serde_json::from_str(&fleet.kring(&["ring", "show", &own_id, "-o", "json"]).await?)?;
    assert_eq!((owned.controller_id, &owned.address), (one, &fleet.controllers[1].advertised));
    more(&load, 10).await?;
    rest(&fleet, load).await?;
    let failed: Vec<_> = fleet.api.history().into_iter().filter(|called| !called.failures.is_empty()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_controller_tells_all_events_and_waits_for_any_job() -> anyhow::Result<()> {
    const EACH: usize = 4;
    let fleet = Fleet::start(2, 2).await?;
    let all = &fleet.controllers;
    let newest: Page<Event> = all[0].api()?.get("/v1/events?sort=-cursor&limit=1").await?;
    let begin = newest.items.first().map_or(0, |event| event.cursor);
    // VMs of each owner, asked for at the other controller, which answers when they run.
    let mut asked = Vec::new();
    for (n, owner) in all.iter().enumerate() {
        for _ in 0..EACH {
            let id = VmId::from_uuid(fleet.id_owned_by(owner.id()?).await?);
            asked.push((1 - n, CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) }));
        }
    }
    let running = |event: &Event| event.path == "/vm/state/changed" && event.content["to"] == "running";
    let until_all_run = || {
        let mut run = 0;
        move |event: &Event| {
            run += usize::from(running(event));
            run == 2 * EACH
        }
    };
    let told = try_join_all([0, 1].map(|at| async move { stream::read(all[at].api()?, begin, until_all_run()).await }));
    let made = try_join_all(asked.iter().map(|(by, body)| async move {
        let reply = all[*by].api()?.send(Call::new(Method::POST, "/v1/vms").json(body).wait(60)).await?;
        anyhow::ensure!(reply.status == 200, "{}", reply.text);
        let job: Job = reply.read()?;
        anyhow::ensure!(job.state == JobState::Succeeded, "{:?}", job.error);
        Ok(())
    }));
    let (told, _) = tokio::try_join!(told, made)?;
    assert_eq!(told[0], told[1]);
    assert!(told[0].is_sorted_by(|a, b| a.cursor < b.cursor));
    let mut states = BTreeMap::<Uuid, Vec<String>>::new();
    for event in told[0].iter().filter(|event| event.path == "/vm/state/changed") {
        let last = states.entry(event.resource_id).or_default();
        let from = event.content["from"].as_str().unwrap_or_default().to_string();
        assert!(last.last().is_none_or(|last| *last == from), "{event:?} after {last:?}");
        last.push(event.content["to"].as_str().unwrap_or_default().to_string());
    }
    assert_eq!(states.len(), 2 * EACH);
    // A stream that began at one controller goes on at the other.
    for (at, events) in told.iter().enumerate() {
        let middle = events.len() / 2;
        let last = events.last().map_or(begin, |event| event.cursor);
        let rest = stream::read(all[1 - at].api()?, events[middle].cursor, |event| event.cursor >= last).await?;
        assert_eq!(rest, events[middle + 1..]);
    }
    fleet.stop().await
}
