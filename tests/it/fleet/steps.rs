//! The owner of a job is killed before and after each of its steps, on the way there and on the way back.

use std::sync::Arc;

use harness::fleet::{Controller, Fleet};
use harness::sim::{Fault, What};
use harness::wait::until;
use reqwest::Method;
use shared::api::job::{JobRef, JobState};
use shared::api::vm::CreateVm;
use shared::error::Code;
use shared::id::VmId;

/// When the owner is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Its `202` has been sent.
    Accepted,
    /// A host is reserved, and the command is on its way there; it arrives after the next owner's.
    Commanded,
    /// The host has done it, and the owner has not heard.
    Done,
    /// The owner has heard, and its journal is not committed.
    Journalled,
    /// The host has failed, and the command that undoes is on its way.
    Failed,
    /// The host has undone it, and the owner has not heard.
    Undone,
}

use Moment::{Accepted, Commanded, Done, Failed, Journalled, Undone};

/// Lets things go wrong so that the moment comes, and gives what has to happen before the kill.
fn prepare(fleet: &Fleet, victim: &Controller, moment: Moment) -> Option<harness::sim::FaultId> {
    let faults = fleet.sim.faults();
    let once = |path: &str, what| Fault::new(path, what).from(&victim.url).times(1);
    let fails = What::FailAfter { code: Code::HostFailed };
    match moment {
        Accepted => None,
        Commanded | Journalled => Some(faults.add(once("vm/ensure", What::Held))),
        Done => Some(faults.add(once("vm/ensure", What::Unanswered))),
        Failed => {
            faults.add(Fault::new("vm/ensure", fails).times(1));
            Some(faults.add(once("vm/delete", What::Held)))
        }
        Undone => {
            faults.add(Fault::new("vm/ensure", fails).times(1));
            Some(faults.add(once("vm/delete", What::Unanswered)))
        }
    }
}

async fn killed_at(fleet: &Fleet, victim: &Controller, moment: Moment) -> anyhow::Result<()> {
    let id = VmId::from_uuid(fleet.id_owned_by(victim.id()?).await?);
    let body = CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) };
    let fault = prepare(fleet, victim, moment);
    let job: JobRef = fleet.api.accepted(Method::POST, "/v1/vms", Some(&serde_json::to_value(&body)?)).await?;
    if let Some(fault) = fault {
        until(&format!("the moment {moment:?} comes"), async || fleet.sim.faults().hits(fault) > 0).await?;
    }
    let on_a_host = || fleet.sim.hosts().iter().any(|host| host.state().vms.contains_key(&id));
    match moment {
        Done => until("it is done", async || on_a_host()).await?,
        Undone => until("it is undone", async || !on_a_host()).await?,
        Journalled => {
            let held = fleet.database.hold("SELECT id FROM job WHERE finished_at IS NULL FOR UPDATE").await?;
            if let Some(fault) = fault {
                fleet.sim.faults().remove(fault);
            }
            let waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%job%'";
            until("the journal waits", async || fleet.database.count(waiting).await.is_ok_and(|n| n > 0)).await?;
            victim.kill().await?;
            held.rollback().await?;
        }
        Accepted | Commanded | Failed => {}
    }
    victim.kill().await?;
    let ended = fleet.api.wait_job(job.job_id).await?;
    let wanted = if matches!(moment, Failed | Undone) { JobState::Failed } else { JobState::Succeeded };
    assert_eq!(ended.state, wanted, "{moment:?}: {:?}", ended.error);
    // What the dead one had sent arrives now.
    fleet.sim.faults().clear();
    victim.start().await?;
    fleet.whole().await?;
    fleet.at_rest().await?;
    assert_eq!(on_a_host(), wanted == JobState::Succeeded, "{moment:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_a_job_may_die_before_and_after_each_step() -> anyhow::Result<()> {
    let fleet = Fleet::start(3, 2).await?;
    for (n, moment) in [Accepted, Commanded, Done, Journalled, Failed, Undone].into_iter().enumerate() {
        let victim = Arc::clone(&fleet.controllers[n % 3]);
        killed_at(&fleet, &victim, moment).await.inspect_err(|_| eprintln!("{moment:?}\n{}", fleet.logs(60)))?;
    }
    let tally = fleet.assert_consistent().await?;
    assert!(tally.stale_refused > 0, "late commands were refused: {tally}");
    fleet.stop().await
}
