//! Faults at a certain moment of a job: something happens to the job's owner before or after one of its steps, on the
//! way there or on the way back.

use std::fmt;
use std::sync::Arc;

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};
use shared::api::job::{JobRef, JobState};
use shared::api::vm::CreateVm;
use shared::error::Code;
use shared::id::{ResourceId, VmId};

use crate::fleet::{Controller, Fleet, Tally};
use crate::proxy::Link;
use crate::sim::{Fault, FaultId, Note, What};
use crate::wait::until;

/// What a job does to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is made.
    Create,
    /// It is stopped.
    Stop,
    /// It is started.
    Start,
    /// It is restarted.
    Reboot,
    /// It is deleted, and can be recovered.
    Delete,
    /// It is removed for good.
    Expunge,
}

/// When something happens to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Its `202` has been sent.
    Accepted,
    /// The command is on its way to the host.
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

/// What happens to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// `kill -9`.
    Kill,
    /// It is stopped as a debugger does, until others have taken over.
    Freeze,
    /// It is cut off from the database, until others have taken over.
    CutDatabase,
    /// It is cut off from the broker until the job has ended.
    CutBroker,
    /// It is cut off from what hosts and other controllers tell it until the job has ended.
    CutOthers,
}

/// A job, a moment in it, and what happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The job.
    pub work: Work,
    /// The moment.
    pub moment: Moment,
    /// What happens to the owner.
    pub strike: Strike,
}

use Moment::{Accepted, Commanded, Done, Failed, Journalled, Undone};
use Strike::{CutBroker, CutDatabase, CutOthers, Freeze, Kill};
use Work::{Create, Delete, Expunge, Reboot, Start, Stop};

/// Every moment of every job, with everything that can happen.
#[must_use]
pub fn all() -> Vec<Case> {
    let moments = |work| match work {
        Create => [Accepted, Commanded, Done, Journalled, Failed, Undone].as_slice(),
        _ => &[Accepted, Commanded, Done, Journalled],
    };
    let strikes = [Kill, Freeze, CutDatabase, CutBroker, CutOthers];
    [Create, Stop, Start, Reboot, Delete, Expunge]
        .into_iter()
        .flat_map(|work| moments(work).iter().map(move |moment| (work, *moment)))
        .flat_map(|(work, moment)| strikes.into_iter().map(move |strike| Case { work, moment, strike }))
        .collect()
}

/// Plays a case to the `n`th controller, in turn, and gives what became of everything.
///
/// # Errors
/// When the job does not end as it should, or anything is not consistent afterwards.
pub async fn play(fleet: &Fleet, n: usize, case: Case) -> anyhow::Result<Tally> {
    let victim = Arc::clone(&fleet.controllers[n % fleet.controllers.len()]);
    let id = VmId::from_uuid(fleet.id_owned_by(victim.id()?).await?);
    case.prepare(fleet, id).await.context("preparing")?;
    fleet.api.forget();
    fleet.sim.history().record();
    let fault = case.fault(fleet, &victim);
    let job = case.begin(fleet, id).await?;
    if let Err(error) = case.come(fleet, id, fault).await {
        let jobs = "SELECT id, kind || ' ' || state || ' at ' || CAST(step AS TEXT) FROM job WHERE finished_at IS NULL";
        let (jobs, notes) = (fleet.database.pairs(jobs).await, fleet.sim.history().notes());
        return Err(error.context(format!("job {}; open: {jobs:?}; on the hosts: {notes:?}", job.job_id)));
    }
    let mut held = None;
    if case.moment == Journalled {
        held = Some(fleet.database.hold("SELECT id FROM job WHERE finished_at IS NULL FOR UPDATE").await?);
        fleet.sim.faults().remove(fault);
        let waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%job%'";
        until("the journal waits", async || fleet.database.count(waiting).await.is_ok_and(|n| n > 0)).await?;
    }
    case.strike(&victim).await?;
    if let Some(held) = held {
        held.rollback().await?;
    }
    match case.strike {
        Kill => {}
        Freeze | CutDatabase => fleet.until_taken_over(&victim).await?,
        // Nobody else sends it again.
        CutBroker | CutOthers => fleet.sim.faults().clear(),
    }
    let ended = fleet.api.wait_job(job.job_id).await?;
    anyhow::ensure!(ended.state == case.end(), "the job is {}: {:?}", ended.state, ended.error);
    // What a former owner had sent arrives now, after what the next one has sent.
    fleet.sim.faults().clear();
    case.end_strike(&victim).await?;
    fleet.heal().await?;
    let tally = fleet.assert_consistent().await?;
    let there = fleet.sim.hosts().iter().any(|host| host.state().vms.contains_key(&id));
    anyhow::ensure!(there == case.leaves_a_domain(), "whether it is on a host: {there}");
    Ok(tally)
}

impl Case {
    /// Makes the VM, and has it be what the job is about.
    async fn prepare(self, fleet: &Fleet, id: VmId) -> anyhow::Result<()> {
        let before: &[Work] = match self.work {
            Create => &[],
            Stop | Reboot | Delete => &[Create],
            Start => &[Create, Stop],
            Expunge => &[Create, Delete],
        };
        for work in before {
            let job = Self { work: *work, ..self }.begin(fleet, id).await?;
            let ended = fleet.api.wait_job(job.job_id).await?;
            anyhow::ensure!(ended.state == JobState::Succeeded, "{work:?}: {:?}", ended.error);
        }
        Ok(())
    }

    /// The command to the host that the job is about.
    const fn command(self) -> &'static str {
        match (self.moment, self.work) {
            (Failed | Undone, _) | (_, Delete | Expunge) => "vm/delete",
            (_, Create | Start) => "vm/ensure",
            (_, Stop) => "vm/stop",
            (_, Reboot) => "vm/reboot",
        }
    }

    /// Lets things go wrong so that the moment comes.
    fn fault(self, fleet: &Fleet, victim: &Controller) -> FaultId {
        let faults = fleet.sim.faults();
        if matches!(self.moment, Failed | Undone) {
            faults.add(Fault::new("vm/ensure", What::FailAfter { code: Code::HostFailed }).times(1));
        }
        let what = match self.moment {
            // Whether it had been sent by then or not, it does not end before something happens to its owner.
            Accepted | Commanded | Journalled | Failed => What::Held,
            Done | Undone => What::Unanswered,
        };
        faults.add(Fault::new(self.command(), what).from(&victim.advertised).times(1))
    }

    async fn begin(self, fleet: &Fleet, id: VmId) -> anyhow::Result<JobRef> {
        let (path, force) = (format!("/v1/vms/{id}"), json!({ "mode": "force" }));
        let send = async |method: Method, path: &str, body: Option<&Value>| -> anyhow::Result<JobRef> {
            Ok(fleet.api.accepted(method, path, body).await?)
        };
        match self.work {
            Create => {
                let body = CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) };
                send(Method::POST, "/v1/vms", Some(&serde_json::to_value(&body)?)).await
            }
            Stop => send(Method::POST, &format!("{path}/stop"), Some(&force)).await,
            Start => send(Method::POST, &format!("{path}/start"), Some(&json!({}))).await,
            Reboot => send(Method::POST, &format!("{path}/reboot"), Some(&force)).await,
            Delete => send(Method::DELETE, &path, None).await,
            Expunge => send(Method::POST, &format!("{path}/expunge"), Some(&json!({}))).await,
        }
    }

    /// Waits for the moment.
    async fn come(self, fleet: &Fleet, id: VmId, fault: FaultId) -> anyhow::Result<()> {
        if self.moment != Accepted {
            until("the command is on its way", async || fleet.sim.faults().hits(fault) > 0).await?;
        }
        if matches!(self.moment, Done | Undone) {
            let over = |notes: &[Note]| {
                let mut began = notes.iter().filter_map(|note| match note {
                    Note::Began { resource, path, task, .. } if *resource == id.uuid() && path == self.command() => {
                        Some(*task)
                    }
                    _ => None,
                });
                began.any(|began| notes.iter().any(|note| matches!(note, Note::Ended { task, .. } if *task == began)))
            };
            until("the host has done it", async || over(&fleet.sim.history().notes())).await?;
        }
        Ok(())
    }

    async fn strike(self, victim: &Controller) -> anyhow::Result<()> {
        match self.strike {
            Kill => victim.kill().await?,
            Freeze => victim.freeze().await?,
            CutDatabase | CutBroker | CutOthers => self.set_way(victim, Link::CUT),
        }
        Ok(())
    }

    async fn end_strike(self, victim: &Controller) -> anyhow::Result<()> {
        match self.strike {
            Kill => victim.start().await?,
            Freeze => victim.thaw().await?,
            CutDatabase | CutBroker | CutOthers => self.set_way(victim, Link::WHOLE),
        }
        if matches!(self.strike, Freeze | CutDatabase) {
            victim.until_ended().await?;
        }
        Ok(())
    }

    fn set_way(self, victim: &Controller, link: Link) {
        match self.strike {
            CutDatabase => victim.to_database.set(link),
            CutBroker => victim.to_broker.set(link),
            CutOthers => victim.from_others.set(link),
            Kill | Freeze => {}
        }
    }

    /// Whether the VM is on a host afterwards.
    const fn leaves_a_domain(self) -> bool {
        match self.work {
            Create => matches!(self.end(), JobState::Succeeded),
            Stop | Start | Reboot => true,
            Delete | Expunge => false,
        }
    }

    const fn end(self) -> JobState {
        if matches!(self.moment, Failed | Undone) { JobState::Failed } else { JobState::Succeeded }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?} of {:?}", self.strike, self.moment, self.work)
    }
}
