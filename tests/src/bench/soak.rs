//! `soak`: VMs are made, stopped, started and deleted at a steady rate while one in a hundred commands to hosts
//! goes wrong, and what the controller holds is looked at from time to time: it must not grow.
//!
//! History is kept for minutes instead of days, so that it comes to its usual size within the run.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::json;
use shared::Code;
use shared::api::image::Image;
use shared::api::job::{JobRef, JobState};
use shared::api::network::Network;
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;

use super::Bench;
use super::process::{self, Spent, Watch};
use crate::client::{Call, Failure};
use crate::cluster::{Cluster, Setup};
use crate::sim::{Fault, What};
use crate::wait;

const HOSTS: usize = 100;
/// How long history is kept, in days: the shortest that may be set, some 90 seconds.
const KEPT_DAYS: f64 = 0.001;
/// Looks at the controller in one run.
const LOOKS: u32 = 90;
/// Part of the commands that fail, and of those whose answer is lost.
const FAULTS: [(What, f64); 2] = [(What::Fail { code: Code::HostFailed }, 0.005), (What::DropAfter, 0.005)];
/// What is counted.
const ROWS: [(&str, &str); 7] = [
    ("VMs", "SELECT COUNT(*) FROM vm"),
    ("volumes", "SELECT COUNT(*) FROM volume"),
    ("network cards", "SELECT COUNT(*) FROM nic"),
    ("open jobs", "SELECT COUNT(*) FROM job WHERE finished_at IS NULL"),
    ("jobs", "SELECT COUNT(*) FROM job"),
    ("events", "SELECT COUNT(*) FROM event"),
    ("debts to hosts", "SELECT COUNT(*) FROM cleanup"),
];

/// What users saw.
#[derive(Default)]
struct Seen {
    succeeded: AtomicU64,
    /// Because of a fault, and rolled back.
    failed: AtomicU64,
    refused: AtomicU64,
    lives: AtomicU64,
    problems: Mutex<Vec<String>>,
}

impl Seen {
    /// The life of a VM has ended, or the task that played it.
    fn ended(&self, life: Result<anyhow::Result<()>, JoinError>) {
        let problem = match life {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(panicked) => panicked.to_string(),
        };
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
    }
}

/// One look at the controller: memory, open files, and rows.
struct Look {
    memory: f64,
    files: f64,
    rows: [f64; ROWS.len()],
}

/// Measures so many VMs a second for so long.
///
/// # Errors
/// When anything is lost, or does not come to rest afterwards.
pub async fn run(rate: u32, length: Duration) -> anyhow::Result<()> {
    process::allow_files()?;
    let mut bench = Bench::begin("soak")?;
    let host = Some((256, shared::units::Bytes::gib(4096)));
    let cluster = Arc::new(Cluster::start_with(Setup { process: true, host, ..Setup::default() }).await?);
    bench.version("database", cluster.database.version().await?);
    stream::iter(0..HOSTS).map(|_| cluster.host()).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    for kept in ["job.keep_days", "event.keep_days"] {
        cluster.set(kept, json!(KEPT_DAYS)).await?;
    }
    cluster.set("host.ping_interval", 10.into()).await?;
    cluster.set("vm.expunge_after", 0.into()).await?;
    bench.settings_of(&cluster.api).await?;
    let (image, network) = (Arc::new(cluster.image().await?), Arc::new(cluster.network_in("10.64.0.0/12").await?));
    for (what, likely) in FAULTS {
        cluster.sim.faults().add(Fault::new("*", what).likely(likely));
    }
    let pid = cluster.pid().context("the controller is a process")?;
    let (seen, watch) = (Arc::new(Seen::default()), Watch::of(pid)?);
    let (mut lives, mut looks) = (JoinSet::new(), Vec::new());
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    // What the machine was late with is made up for.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut look = tokio::time::interval(length / LOOKS);
    look.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while watch.elapsed() < length {
        tokio::select! {
            _ = tick.tick() => {
                let (cluster, image, network) = (Arc::clone(&cluster), Arc::clone(&image), Arc::clone(&network));
                let seen = Arc::clone(&seen);
                lives.spawn(async move { live(&cluster, &image, &network, &seen).await });
            }
            Some(life) = lives.join_next() => seen.ended(life),
            _ = look.tick() => looks.push(Look::take(&cluster, pid).await?),
        }
    }
    while let Some(life) = lives.join_next().await {
        seen.ended(life);
    }
    figures(&mut bench, &seen, watch.spent()?);
    growth(&mut bench, &looks);
    // What was seen is told also when this goes wrong.
    let rested = rest(&cluster, &seen).await;
    let stopped = Arc::into_inner(cluster).context("something still uses the cluster")?.stop().await;
    bench.end()?;
    rested.and(stopped)
}

/// Nothing is left, and nothing went wrong.
async fn rest(cluster: &Cluster, seen: &Seen) -> anyhow::Result<()> {
    cluster.sim.faults().clear();
    for (what, query) in ROWS.into_iter().filter(|(what, _)| ["VMs", "open jobs", "debts to hosts"].contains(what)) {
        let none = async || cluster.database.count(query).await.is_ok_and(|rows| rows == 0);
        wait::until(&format!("no {what} are left"), none).await?;
    }
    cluster.assert_consistent().await?;
    let problems = std::mem::take(&mut *seen.problems.lock().unwrap_or_else(PoisonError::into_inner));
    anyhow::ensure!(problems.is_empty(), "{} lives went wrong, such as: {:?}", problems.len(), problems.first());
    Ok(())
}

/// A VM is made, stopped, started and deleted. A job that fails because of a fault is no error.
async fn live(cluster: &Cluster, image: &Image, network: &Network, seen: &Seen) -> anyhow::Result<()> {
    let body = serde_json::to_value(cluster.vm_body(image, network))?;
    let Some(made) = job(cluster, seen, Call::new(Method::POST, "/v1/vms").json(&body)).await? else { return Ok(()) };
    let path = format!("/v1/vms/{}", made.resource.id);
    let mut whole = true;
    for verb in ["stop", "start"] {
        let path = format!("{path}/{verb}");
        whole &= job(cluster, seen, Call::new(Method::POST, &path).json(&json!({}))).await?.is_some();
    }
    while job(cluster, seen, Call::new(Method::DELETE, &path)).await?.is_none() {}
    seen.lives.fetch_add(u64::from(whole), Relaxed);
    Ok(())
}

/// The job, when it succeeded.
async fn job(cluster: &Cluster, seen: &Seen, call: Call<'_>) -> anyhow::Result<Option<JobRef>> {
    let accepted = match cluster.api.send(call).await?.read::<JobRef>() {
        Ok(accepted) => accepted,
        Err(Failure::Refused(problem)) if problem.code.is_transient() => {
            seen.refused.fetch_add(1, Relaxed);
            return Ok(None);
        }
        // A stop that was undone leaves it running, and it cannot be started then.
        Err(Failure::Refused(problem)) if problem.code == Code::InvalidState => return Ok(None),
        Err(other) => return Err(other.into()),
    };
    let ended = cluster.api.wait_job(accepted.job_id).await?;
    let succeeded = ended.state == JobState::Succeeded;
    let counter = if succeeded { &seen.succeeded } else { &seen.failed };
    counter.fetch_add(1, Relaxed);
    Ok(succeeded.then_some(accepted))
}

impl Look {
    async fn take(cluster: &Cluster, pid: u32) -> anyhow::Result<Self> {
        let mut rows = [0.0; ROWS.len()];
        for (count, (_, query)) in rows.iter_mut().zip(ROWS) {
            *count = cluster.database.count(query).await? as f64;
        }
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64;
        Ok(Self { memory: process::resident(pid)? as f64 / f64::from(1 << 20), files, rows })
    }
}

fn figures(bench: &mut Bench, seen: &Seen, Spent { wall, cpu, .. }: Spent) {
    let of = |counter: &AtomicU64| counter.load(Relaxed) as f64;
    let jobs = of(&seen.succeeded) + of(&seen.failed);
    bench.figure("how long", wall, "s", "1800");
    bench.figure("VMs made, stopped, started and deleted", of(&seen.lives) / wall, "1/s", "200");
    bench.figure("jobs", jobs / wall, "1/s", "");
    bench.figure("jobs that a fault had fail", of(&seen.failed), "", "");
    bench.figure("requests that were refused (503)", of(&seen.refused), "", "");
    bench.figure("of a core", cpu / wall * 100.0, "%", "");
    bench.figure("CPU each job", cpu * 1000.0 / jobs, "ms", "");
}

/// The second third of the run beside the last one: history is as long as it gets after the first one.
fn growth(bench: &mut Bench, looks: &[Look]) {
    let third = looks.len() / 3;
    let mut line = |name: &str, unit: &'static str, of: &dyn Fn(&Look) -> f64| {
        let mean = |looks: &[Look]| looks.iter().map(of).sum::<f64>() / looks.len() as f64;
        let (second, last) = (mean(&looks[third..2 * third]), mean(&looks[2 * third..]));
        bench.figure(format!("{name}: second third of the run"), second, unit, "");
        bench.figure(format!("{name}: last third"), last, unit, "the same");
    };
    line("memory", "MiB", &|look| look.memory);
    line("open files", "", &|look| look.files);
    for (n, (name, _)) in ROWS.into_iter().enumerate() {
        line(name, "", &|look| look.rows[n]);
    }
}
