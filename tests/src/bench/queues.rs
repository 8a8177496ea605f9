//! `queues`: what a message broker holds for two controllers with every service, however many hosts there are and
//! however much they work. It is asked with `rabbitmqctl`.

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use shared::api::setting::{Setting, UpdateSetting};

use super::Bench;
use crate::fleet::{Fleet, Load};
use crate::wait::until;

/// Hosts that join at a time.
const JOINS: usize = 32;
/// Time between two pings of a host, in seconds.
const INTERVAL: f64 = 60.0;
/// What users have done at each size.
const JOBS: usize = 60;
const USERS: u64 = 8;

/// Counts with so many hosts, one number after the other.
///
/// # Errors
/// When the fleet does not start, or the number of queues depends on hosts or work.
pub async fn run(sizes: &[usize]) -> anyhow::Result<()> {
    super::process::allow_files()?;
    let mut bench = Bench::begin("queues")?.on(super::POSTGRES);
    let fleet = Fleet::start(2, 1).await?;
    bench.version("database", fleet.database.version().await?);
    bench.version("broker", fleet.broker.version().await?);
    let value = UpdateSetting { value: INTERVAL.into() };
    fleet.controllers[0].api()?.put::<Setting>("/v1/settings/host.ping_interval", &value).await?;
    let before = fleet.broker.queues().await?;
    for (n, size) in sizes.iter().enumerate() {
        let missing = size.saturating_sub(fleet.sim.hosts().len());
        let joins = stream::iter(0..missing).map(|_| fleet.host()).buffer_unordered(JOINS);
        joins.try_for_each(|_| async { Ok(()) }).await.with_context(|| format!("{missing} hosts join"))?;
        let load = Load::start(&fleet, USERS, n as u64);
        until("users have worked", async || load.done() >= JOBS).await?;
        let queues = fleet.broker.queues().await?;
        let problems = load.end().await;
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
        anyhow::ensure!(queues == before, "hosts or work have changed the queues: {before:?} became {queues:?}");
        bench.figure(format!("{size} hosts: queues of two controllers"), queues.len() as f64, "", "less than 60");
    }
    fleet.at_rest().await?;
    fleet.stop().await?;
    bench.end()
}
