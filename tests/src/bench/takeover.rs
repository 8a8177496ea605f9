//! `takeover`: a controller is killed, again and again, and others go on with what was its own. Before each kill the
//! others have been in touch with the database for long enough to judge who is dead; otherwise that takes them up to
//! six seconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use controller::ring::view::JUDGES_AFTER;
use futures_util::future::try_join_all;
use reqwest::Method;
use shared::api::job::JobRef;
use shared::api::vm::CreateVm;
use shared::id::VmId;

use super::{Bench, quantile};
use crate::fleet::Fleet;
use crate::sim::{Fault, What};
use crate::wait::until;

/// Until the others may judge who is dead.
const REST: Duration = JUDGES_AFTER.saturating_add(Duration::from_secs(1));
/// Jobs that the victim works on when it is killed.
const JOBS: usize = 4;

/// Kills one of three controllers so many times, each in the middle of jobs of its own.
///
/// # Errors
/// When the fleet does not start, or anything that was accepted does not end well.
pub async fn run(kills: usize) -> anyhow::Result<()> {
    let mut bench = Bench::begin("takeover")?.on(super::POSTGRES);
    let fleet = Fleet::start(3, 3).await?;
    bench.version("database", fleet.database.version().await?);
    bench.version("broker", fleet.broker.version().await?);
    let (mut served, mut ended) = (Vec::new(), Vec::new());
    for n in 0..kills {
        tokio::time::sleep(REST).await;
        let victim = Arc::clone(&fleet.controllers[n % fleet.controllers.len()]);
        let through = (n + 1) % fleet.controllers.len();
        let other = fleet.id_owned_by(victim.id()?).await?;
        // Outcomes that are posted to a controller that is no more.
        let late = fleet.sim.faults().add(Fault::new("vm/ensure", What::CallbackLate { ms: 1500 }));
        let mut jobs = Vec::new();
        for _ in 0..JOBS {
            let id = VmId::from_uuid(fleet.id_owned_by(victim.id()?).await?);
            let body = CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) };
            let body = serde_json::to_value(&body)?;
            jobs.push(fleet.api.accepted(Method::POST, "/v1/vms", Some(&body)).await?);
        }
        until("the hosts work on them", async || fleet.sim.faults().hits(late) as usize >= JOBS).await?;
        victim.kill().await?;
        let begin = Instant::now();
        let serving = async { anyhow::Ok(fleet.until_served(other, through).await?) };
        let ending = async {
            try_join_all(jobs.iter().map(|job: &JobRef| fleet.api.wait_job(job.job_id))).await?;
            anyhow::Ok(begin.elapsed())
        };
        let (one, all) = tokio::try_join!(serving, ending)?;
        served.push(millis(one));
        ended.push(millis(all));
        fleet.sim.faults().clear();
        victim.start().await?;
        fleet.whole().await?;
    }
    fleet.assert_consistent().await?;
    fleet.stop().await?;
    served.sort_unstable();
    ended.sort_unstable();
    for (what, values, target) in
        [("served by others", &served, "at most 5000 (p99)"), ("all its jobs have ended", &ended, "at most 15000")]
    {
        bench.figure(format!("from kill -9 until {what}, p50"), quantile(values, 0.5), "ms", "");
        bench.figure(format!("from kill -9 until {what}, p99"), quantile(values, 0.99), "ms", target);
    }
    bench.figure("kills", kills as f64, "", "20");
    bench.end()
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
