//! Ways that are cut between controllers and hosts, connections that cease to be in silence, a database that
//! only reads, members that come and go.

use std::sync::Arc;
use std::time::Duration;

use controller::db::controller::LOST_AFTER_MS;
use harness::fleet::{Controller, Fleet, Load};
use harness::proxy::Link;
use harness::sim::{Fault, What};
use harness::wait::until;
use harness::world::World;
use shared::api::image::{CreateImage, ImageSource};
use shared::api::vm::CreateVm;
use shared::id::{ImageId, VmId};
use shared::time::Timestamp;

use super::{USERS, more, rest};
use crate::image::upload;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_may_be_cut_off_from_the_hosts() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 11);
    more(&load, 10).await?;
    // Its commands do not arrive; then they arrive, are done, and nobody is told.
    for what in [What::Held, What::Unanswered] {
        let fault = fleet.sim.faults().add(Fault::new("*", what).from(&fleet.controllers[0].advertised));
        until("commands are lost", async || fleet.sim.faults().hits(fault) > 0).await?;
        // What the others own goes on.
        let id = VmId::from_uuid(fleet.id_owned_by(fleet.controllers[1].id()?).await?);
        let body = CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) };
        fleet.vm_as(&body).await?;
        fleet.sim.faults().remove(fault);
        more(&load, 3).await?;
    }
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_kept_by_the_owner_whichever_controller_it_is_sent_to() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 1).await?;
    // Through the first controller.
    let world: &World = &fleet;
    for owner in &fleet.controllers {
        let id = ImageId::from_uuid(fleet.id_owned_by(owner.id()?).await?);
        let body = CreateImage { id: Some(id), source: ImageSource::Upload, ..world.image_body("") };
        world.api.post::<serde_json::Value>("/v1/images", &body).await?;
        world.api.succeed(&upload(&world.api, id).await?).await?;
        // The host fetches it from whoever has it.
        let image = world.api.get(&format!("/v1/images/{id}")).await?;
        fleet.vm(&image, &fleet.network).await?;
    }
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_database_may_cease_in_silence() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 12);
    more(&load, 10).await?;
    let victim = Arc::clone(&fleet.controllers[0]);
    victim.to_database.forget();
    // It stays a member: its heartbeat gives the connection up in time. And it serves what it owns.
    more(&load, 10).await?;
    let own = fleet.id_owned_by(victim.id()?).await?;
    fleet.until_served(own, 0).await?;
    assert!(victim.runs().await?, "{}", victim.log_tail(20));
    assert!(!victim.log().contains("others have taken over"), "{}", victim.log_tail(20));
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_controller_comes_back_while_its_last_life_still_seems_to_go_on() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 2).await?;
    let victim = Arc::clone(&fleet.controllers[0]);
    // The database is not told that the connections of the process have ended with it.
    victim.to_database.forget();
    victim.kill().await?;
    victim.start().await?;
    assert!(victim.log().contains("waiting until it is over"), "{}", victim.log_tail(20));
    fleet.whole().await?;
    let own = VmId::from_uuid(fleet.id_owned_by(victim.id()?).await?);
    fleet.vm_as(&CreateVm { id: Some(own), ..fleet.vm_body(&fleet.image, &fleet.network) }).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_only_reads_for_a_while_changes_no_membership() -> anyhow::Result<()> {
    let fleet = Fleet::start(2, 2).await?;
    let load = Load::start(&fleet, USERS, 13);
    more(&load, 10).await?;
    let members = fleet.members().await?;
    fleet.database.set_read_only(true).await?;
    let refused = "nothing is begun until it is back";
    until("all notice", async || fleet.controllers.iter().all(|c| c.log().contains(refused))).await?;
    // Longer than others are waited for.
    tokio::time::sleep(Duration::from_secs(12)).await;
    fleet.database.set_read_only(false).await?;
    more(&load, 10).await?;
    assert_eq!(fleet.members().await?, members, "nobody was buried");
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_may_come_and_go_again_and_again() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 14);
    more(&load, 10).await?;
    let victim = Arc::clone(&fleet.controllers[1]);
    for _ in 0..3 {
        // About as long as the others wait: sometimes it is buried, sometimes not.
        victim.to_database.set(Link::CUT);
        victim.to_database.break_off();
        tokio::time::sleep(Duration::from_millis(LOST_AFTER_MS.unsigned_abs() + 200)).await;
        victim.to_database.set(Link::WHOLE);
        victim.ensure_running().await?;
        more(&load, 3).await?;
    }
    for _ in 0..3 {
        // After the last cut it may still be about to learn that it was buried; then it ends by itself.
        if let Err(ended) = victim.stop().await {
            assert!(victim.log().contains("others have taken over"), "{ended:#}");
        }
        victim.ensure_running().await?;
    }
    rest(&fleet, load).await?;
    fleet.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_may_be_off_by_an_hour() -> anyhow::Result<()> {
    const HOUR: i64 = 3600;
    let fleet = Fleet::start(3, 3).await?;
    let load = Load::start(&fleet, USERS, 15);
    more(&load, 10).await?;
    let members = fleet.members().await?;
    let hour_ahead = |text: &str| text > Timestamp::now().plus_ms(HOUR * 1000 / 2).to_string().as_str();
    // A controller whose clock is wrong writes that into its log, and into nothing else.
    let wrong = Arc::clone(&fleet.controllers[0]);
    wrong.set_clock_ahead(HOUR)?;
    let lines = |controller: &Controller| controller.log().lines().map(str::to_string).collect::<Vec<_>>();
    until("its clock is ahead", async || lines(&wrong).iter().any(|line| line.starts_with("20") && hour_ahead(line)))
        .await?;
    fleet.controllers[1].set_clock_ahead(-HOUR)?;
    fleet.sim.hosts().iter().for_each(|host| host.set_clock_ahead_ms(HOUR * 1000));
    more(&load, 10).await?;
    let latest = "SELECT MAX(created_at) FROM job";
    let now = Timestamp::now().ms();
    assert!(fleet.database.count(latest).await? < now + HOUR * 1000 / 2, "a controller's own clock was written down");
    // And it starts with that clock.
    wrong.kill().await?;
    wrong.start().await?;
    fleet.whole().await?;
    more(&load, 10).await?;
    // The database's is every controller's.
    for ahead in [HOUR, -HOUR, 0] {
        fleet.database.set_clock_ahead(ahead).await?;
        let touched = "SELECT MIN(heartbeat_at) FROM controller WHERE state = 'active'";
        let close = async || {
            let off = fleet.database.count(touched).await.unwrap_or_default() - Timestamp::now().ms();
            (off - ahead * 1000).abs() < HOUR * 500
        };
        until("every heartbeat has its time", close).await?;
        more(&load, 10).await?;
    }
    assert_eq!(fleet.members().await?, members, "nobody was buried");
    rest(&fleet, load).await?;
    fleet.stop().await
}
