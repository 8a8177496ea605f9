//! Very many calls in flight at the same moment, each on a connection of its own, half of them mutations. Part
//! of `api`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::create::Counted;
use super::floor::{Bare, PATH, Work};
use super::load::{Connected, Target};
use super::process::{self, Spent, Watch};
use super::{Bench, quantile};
use crate::cluster::{Cluster, Setup};

/// TLS handshakes at a time, before the calls.
const HANDSHAKES: usize = 128;
/// Of so many calls in flight, the controller of [`beyond`] allows one.
const BEYOND: usize = 5;

/// Measures with so many calls at once, one number after the other.
pub(super) async fn run(bench: &mut Bench, cluster: &Cluster, paths: &[String], sizes: &[usize]) -> anyhow::Result<()> {
    let pid = cluster.pid().context("the controller is a process")?;
    for &size in sizes {
        let watch = Watch::of(pid)?;
        let connected = connect(&Target::of(&cluster.cli_config())?, size).await?;
        bench.point((size, "connections"), "CPU a connection", watch.spent()?.each(size).cpu * 1000.0, "ms", "");
        let (before, watch) = (Counted::of(&cluster.api).await?, Watch::of(pid)?);
        let answers = all_at_once(&format!("type-{}", cluster.sim.age().as_nanos()), connected, paths).await?;
        let each = watch.spent()?.each(size);
        let work = Counted::of(&cluster.api).await?.each(&before, size / 2);
        let refused = answers.iter().filter(|answer| answer.shed).count();
        let mut times: Vec<u32> = answers.iter().map(|answer| answer.took_us).collect();
        times.sort_unstable();
        let of = (size, "connections");
        bench.figure(format!("{size} calls in flight: refused or lost"), refused as f64, "", "0");
        bench.point(of, "in flight: answered a second", 1.0 / each.wall, "1/s", "");
        bench.point(of, "in flight: p99", quantile(&times, 0.99) / 1000.0, "ms", "");
        bench.point(of, "in flight: CPU each", each.cpu * 1e6, "µs", "");
        let memory = process::most_resident(pid)? as f64;
        bench.point(of, "in flight: most memory", memory / f64::from(1 << 20), "MiB", "");
        let floor = floor(work, size, cluster.server_url()).await?;
        bench.point(of, "in flight, a bare program: answered a second", 1.0 / floor.wall, "1/s", "");
        bench.point(of, "in flight: times the bare program's", each.wall / floor.wall, "", "");
        bench.point(of, "in flight: times the bare program's CPU", each.cpu / floor.cpu, "", "");
    }
    Ok(())
}

/// What each of as many calls takes of a bare program that makes as many writes for each second one.
async fn floor(work: Work, size: usize, database: Option<&str>) -> anyhow::Result<Spent> {
    let bare = Bare::start(Work { commands: 0, ..work }, database).await?;
    let connected = connect(&Target::of(&bare.cli_config()?)?, size).await?;
    let watch = Watch::of(bare.pid)?;
    all_at_once("bare", connected, &[PATH.to_string()]).await?;
    Ok(watch.spent()?.each(size))
}

/// More calls than a controller allows: each is answered or told when to come again.
pub(super) async fn beyond(bench: &mut Bench, size: usize) -> anyhow::Result<()> {
    let limit = size / BEYOND;
    let setup = Setup { process: true, api: format!("max_in_flight = {limit}"), ..Setup::default() };
    let cluster = Cluster::start_with(setup).await?;
    let pid = cluster.pid().context("the controller is a process")?;
    let connected = connect(&Target::of(&cluster.cli_config())?, size).await?;
    let answers = all_at_once("beyond", connected, &["/v1/zones".to_string()]).await?;
    let shed = answers.iter().filter(|answer| answer.shed).count();
    bench.figure(format!("{size} calls, limit {limit}: done"), (size - shed) as f64, "", "");
    bench.figure(format!("{size} calls, limit {limit}: 503 with Retry-After"), shed as f64, "", "");
    let memory = process::most_resident(pid)? as f64;
    bench.figure(format!("{size} calls, limit {limit}: most memory"), memory / f64::from(1 << 20), "MiB", "");
    cluster.stop().await
}

/// What became of a call.
struct Answer {
    /// It was refused with 503 and `Retry-After`; else it was done.
    shed: bool,
    took_us: u32,
}

type Ready = (Target, Vec<Connected>);

async fn connect(target: &Target, size: usize) -> anyhow::Result<Ready> {
    let connected = stream::iter(0..size).map(|_| target.connect()).buffer_unordered(HANDSHAKES).try_collect().await?;
    Ok((target.clone(), connected))
}

/// Everybody calls when everybody is there. What is made has names that begin with that of the `run`.
async fn all_at_once(run: &str, (target, connected): Ready, paths: &[String]) -> anyhow::Result<Vec<Answer>> {
    let (begin, mut calls) = (Arc::new(Barrier::new(connected.len())), JoinSet::new());
    for (n, one) in connected.into_iter().enumerate() {
        let (method, path, body) = if n % 2 == 0 {
            (Method::GET, paths.get(n / 2 % paths.len()).context("a path")?.clone(), Bytes::new())
        } else {
            let body = serde_json::json!({ "name": format!("{run}-{n}"), "vcpus": 1, "memory": 1 << 30 });
            (Method::POST, "/v1/instance_types".to_string(), serde_json::to_vec(&body)?.into())
        };
        let (target, begin) = (target.clone(), Arc::clone(&begin));
        calls.spawn(async move {
            begin.wait().await;
            call(&target, one, &method, &path, body).await
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = calls.join_next().await {
        answers.push(answer??);
    }
    Ok(answers)
}

async fn call(target: &Target, one: Connected, method: &Method, path: &str, body: Bytes) -> anyhow::Result<Answer> {
    let Connected { mut sender, driver } = one;
    let asked = Instant::now();
    let exchange = async {
        let response = sender.send_request(target.request(method, path, body)?).await?;
        let (status, retry_after) = (response.status(), response.headers().contains_key("retry-after"));
        let body = response.into_body().collect().await?.to_bytes();
        let shed = status == StatusCode::SERVICE_UNAVAILABLE && retry_after;
        anyhow::ensure!(shed || status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        let took_us = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
        anyhow::Ok(Answer { shed, took_us })
    };
    tokio::select! {
        answer = exchange => answer,
        ended = driver => Err(anyhow::anyhow!("the connection ended: {ended:?}")),
    }
}
