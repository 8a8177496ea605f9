//! Faults at random, from a seed, while users work: what `make chaos` runs.
//!
//! - [`plan`]: which faults, and when; the same seed gives the same plan.
//! - [`play`]: has them happen to a fleet. - [`run`]: both, with everything checked afterwards.
//! - [`steps`]: not at random, but at each step of each job.

mod plan;
mod play;
pub mod steps;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::Method;
use serde_json::json;

pub use plan::{Fault, Way, Which, plan};
pub use play::Seen;

use crate::fleet::{Fleet, Load, Tally};

/// Users at work.
const USERS: u64 = 4;

/// How one run went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What had happened, for the report of a failure.
    pub faults: Vec<String>,
    /// What was measured while the faults were played.
    pub seen: Seen,
    /// Whether database and hosts did not fit each other at rest, and again when all was removed.
    pub orphans: usize,
    /// Everything that was not as it should be; empty for a good run.
    pub breaches: Vec<String>,
    /// What became of all that was accepted.
    pub tally: Tally,
}

/// Plays the faults of one seed for about this long, heals everything, and checks it. At the end the fleet
/// is empty again.
///
/// # Errors
/// When the fleet itself cannot be used any more; what is wrong with the product is in the outcome.
pub async fn run(fleet: &Fleet, seed: u64, length: Duration) -> anyhow::Result<Outcome> {
    let faults = plan(seed, fleet.controllers.len(), fleet.sim.hosts().len(), length);
    let mut outcome = Outcome { faults: faults.iter().map(ToString::to_string).collect(), ..Outcome::default() };
    fleet.api.forget();
    fleet.sim.history().record();
    let load = Load::start(fleet, USERS, seed);
    outcome.seen = play::play(fleet, &faults).await?;
    fleet.heal().await.context("healing")?;
    let healed = Instant::now();
    outcome.breaches.extend(load.end().await);
    // What came to rest by itself, before it is emptied.
    if let Err(error) = fleet.at_rest().await {
        outcome.orphans += 1;
        outcome.breaches.push(format!("at rest: {error:#}"));
    }
    if let Err(error) = empty(fleet).await {
        outcome.orphans += 1;
        outcome.breaches.push(format!("emptied: {error:#}"));
    }
    outcome.seen.rest = healed.elapsed();
    outcome.tally = Tally::take(fleet).await?;
    outcome.breaches.extend(outcome.tally.breaches.iter().cloned());
    Ok(outcome)
}

/// Removes every VM; then nothing may be left on any host, and no counter above zero.
async fn empty(fleet: &Fleet) -> anyhow::Result<()> {
    let vms = "SELECT id, CASE WHEN deleted_at IS NULL THEN 'here' ELSE 'deleted' END FROM vm";
    for (id, state) in fleet.database.pairs(vms).await? {
        if state == "here" {
            let job = fleet.api.accepted(Method::DELETE, &format!("/v1/vms/{id}"), None).await?;
            fleet.api.wait_job(job.job_id).await?;
        }
        let job = fleet.api.accepted(Method::POST, &format!("/v1/vms/{id}/expunge"), Some(&json!({}))).await?;
        fleet.api.wait_job(job.job_id).await?;
    }
    fleet.at_rest().await?;
    for (what, query) in [
        ("VMs", "SELECT COUNT(*) FROM vm"),
        ("volumes", "SELECT COUNT(*) FROM volume"),
        ("addresses", "SELECT COUNT(*) FROM nic"),
        ("hosts with reservations", "SELECT COUNT(*) FROM host WHERE vcpus_reserved <> 0 OR memory_reserved <> 0"),
    ] {
        let n = fleet.database.count(query).await?;
        anyhow::ensure!(n == 0, "{n} {what} are left");
    }
    for host in fleet.sim.hosts() {
        let state = host.state();
        let left = state.vms.len() + state.volumes.len();
        anyhow::ensure!(left == 0, "{left} orphans are on {}", host.name);
    }
    Ok(())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} faults; at rest after {:.1} s; {}", self.faults.len(), self.seen.rest.as_secs_f64(), self.tally)
    }
}
