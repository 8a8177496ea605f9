//! `query`: reads of very many VMs, and new ones beside them. Each request comes after the one before was answered,
//! but for the last figure.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, stream};
use shared::api::image::Image;
use shared::api::network::Network;
use shared::api::page::Page;
use shared::api::vm::Vm;

use super::process::{self, Spent, Watch};
use super::seed::{self, Seeded};
use super::{Bench, quantile, restart};
use crate::client::Client;
use crate::cluster::Cluster;

/// Requests of each kind.
const REQUESTS: usize = 200;
/// Counts of all.
const COUNTS: usize = 10;
/// VMs that are made beside those that are there.
const NEW: usize = 1000;
/// Hosts on which as many are made before, beside nothing.
const FEW: usize = 100;

/// Lists: what they are called, how they are asked for, and what is asked.
const LISTS: &[(&str, &str)] = &[
    ("page by id", "/v1/vms?limit=100"),
    ("page by state, sorted by name", "/v1/vms?limit=100&q=state=running&sort=name"),
    ("page by a rare state, sorted by name", "/v1/vms?limit=100&q=state=paused&sort=name"),
    ("page by vcpus, sorted by id", "/v1/vms?limit=100&q=vcpus=3&sort=id"),
    ("by nics.ip", "/v1/vms?q=nics.ip=10.96.0.{n}"),
    ("by host.name", "/v1/vms?limit=100&q=host.name={host}"),
    ("by name", "/v1/vms?q=name=seed-{n}"),
];

/// Measures with so many VMs, one number after the other, on so many hosts that are pinged in this interval.
///
/// # Errors
/// When anything fails.
pub async fn run(sizes: &[usize], hosts: usize, interval: Duration) -> anyhow::Result<()> {
    process::allow_files()?;
    let mut bench = Bench::begin("query")?;
    let sizes = seed::rising(sizes);
    let (few, new) = (hosts.min(FEW), NEW.min(sizes.first().copied().unwrap_or(NEW)));
    let mut seeded = Seeded::begin(few, interval).await?;
    bench.version("database", seeded.cluster.database.version().await?);
    bench.settings_of(&seeded.cluster.api).await?;
    let alone = create(&seeded, new).await?;
    bench.figure(format!("each new VM beside nothing on {few} hosts"), alone.wall * 1000.0, "ms", "");
    bench.figure(format!("each new VM beside nothing on {few} hosts, CPU"), alone.cpu * 1000.0, "ms", "");
    seeded.join(hosts - few).await?;
    for size in sizes {
        seeded.grow(size).await?;
        restart::measure(&mut bench, &mut seeded.cluster, size, interval).await?;
        reads(&mut bench, &seeded.cluster, size).await?;
        slow(&mut bench, &seeded.cluster, size).await?;
        let each = create(&seeded, new).await?;
        bench.point((size, "VMs"), "each new one", each.wall * 1000.0, "ms", "");
        bench.point((size, "VMs"), "each new one, CPU", each.cpu * 1000.0, "ms", "");
        let beside = each.wall / alone.wall;
        bench.point((size, "VMs"), "each new one, beside one beside nothing", beside, "times", "at most 1.3");
    }
    seeded.cluster.stop().await?;
    bench.end()
}

async fn reads(bench: &mut Bench, cluster: &Cluster, size: usize) -> anyhow::Result<()> {
    let hosts = cluster.sim.hosts();
    let pid = cluster.pid().context("the controller is a process")?;
    let on_disk = process::read_from_disk(pid)?;
    let mut get = Vec::new();
    let watch = Watch::of(pid)?;
    for n in 0..REQUESTS {
        let id = seed::vm_id(n * 7919 % size)?;
        get.push(timed(&cluster.api, &format!("/v1/vms/{id}")).await?.0);
    }
    get.sort_unstable();
    bench.point((size, "VMs"), "get, median", quantile(&get, 0.5) / 1000.0, "ms", "");
    bench.point((size, "VMs"), "get, p99", quantile(&get, 0.99) / 1000.0, "ms", "at most 2");
    bench.point((size, "VMs"), "get, CPU", watch.spent()?.each(REQUESTS).cpu * 1000.0, "ms", "");
    for (name, path) in LISTS {
        let mut times = Vec::new();
        let mut cursor: Option<String> = None;
        let watch = Watch::of(pid)?;
        for n in 0..REQUESTS {
            let path = path.replace("{n}", &(n % 200).to_string());
            let path = path.replace("{host}", hosts[n % hosts.len()].name.as_str());
            // Every other page is one behind the page before.
            let behind = cursor.take().filter(|_| n % 2 == 1 && !path.contains("host.name"));
            let path = behind.map_or_else(|| path.clone(), |cursor| format!("{path}&cursor={cursor}"));
            let (took, page) = timed(&cluster.api, &path).await?;
            let page: Page<Vm> = serde_json::from_str(&page)?;
            anyhow::ensure!(!page.items.is_empty() || n % 2 == 1 || size < 100, "{path} found nothing");
            cursor = page.next_cursor;
            times.push(took);
        }
        bench.point((size, "VMs"), &format!("{name}, p99"), p99(times), "ms", "at most 10");
        let cpu = watch.spent()?.each(REQUESTS).cpu * 1000.0;
        bench.point((size, "VMs"), &format!("{name}, CPU"), cpu, "ms", "");
    }
    let (mut times, watch) = (Vec::new(), Watch::of(pid)?);
    for _ in 0..COUNTS {
        times.push(timed(&cluster.api, "/v1/vms?limit=1&count=true").await?.0);
    }
    bench.point((size, "VMs"), "count, CPU", watch.spent()?.each(COUNTS).cpu * 1000.0, "ms", "");
    times.sort_unstable();
    bench.point((size, "VMs"), "count, median", quantile(&times, 0.5) / 1000.0, "ms", "");
    bench.point((size, "VMs"), "count, longest", quantile(&times, 1.0) / 1000.0, "ms", "at most 200");
    // The longest of each kind are those that waited for the disk.
    let on_disk = (process::read_from_disk(pid)? - on_disk) as f64;
    bench.point((size, "VMs"), "read from disk for all these", on_disk / f64::from(1 << 20), "MiB", "");
    Ok(())
}

/// A filter that no index helps with, and what it does to others.
async fn slow(bench: &mut Bench, cluster: &Cluster, size: usize) -> anyhow::Result<()> {
    let path = "/v1/vms?q=hostname=nonesuch";
    let begin = Instant::now();
    let asked = cluster.api.send(crate::client::Call::new(reqwest::Method::GET, path)).await?;
    bench.point((size, "VMs"), "without an index", begin.elapsed().as_secs_f64(), "s", "at most 2");
    bench.figure(format!("{size} VMs: without an index, status"), f64::from(asked.status), "", "");
    for (name, of, target) in [("get", None, ""), ("page by id", Some("/v1/vms?limit=100"), "at most 10")] {
        let slow = stream::iter(0..8).map(|_| cluster.api.send(crate::client::Call::new(reqwest::Method::GET, path)));
        let slow = slow.buffer_unordered(8).collect::<Vec<_>>();
        let others = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut times = Vec::new();
            for n in 0..REQUESTS {
                let one = format!("/v1/vms/{}", seed::vm_id(n * 7919 % size)?);
                times.push(timed(&cluster.api, of.unwrap_or(&one)).await?.0);
            }
            anyhow::Ok(times)
        };
        let (answered, times) = tokio::join!(slow, others);
        bench.point((size, "VMs"), &format!("{name} beside eight such, p99"), p99(times?), "ms", target);
        let refused = answered.iter().flatten().filter(|reply| reply.status != 200).count();
        bench.figure(format!("{size} VMs: of the eight beside each {name}, refused"), refused as f64, "", "");
    }
    Ok(())
}

/// So many new VMs beside those that are there. Answers what each took.
async fn create(Seeded { cluster, vm, .. }: &Seeded, count: usize) -> anyhow::Result<Spent> {
    let nic = vm.nics.first().context("the VM has a network")?;
    let image: Image = cluster.api.get(&format!("/v1/images/{}", vm.image_id)).await?;
    let network: Network = cluster.api.get(&format!("/v1/networks/{}", nic.network_id)).await?;
    let (made, _) = super::create::make(cluster, &image, &network, count).await?;
    Ok(made.each(count))
}

async fn timed(api: &Client, path: &str) -> anyhow::Result<(u32, String)> {
    let begin = Instant::now();
    let reply = api.send(crate::client::Call::new(reqwest::Method::GET, path)).await?;
    anyhow::ensure!(reply.status == 200, "{path}: {}", reply.text);
    Ok((u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX), reply.text))
}

/// In milliseconds, of microseconds.
fn p99(mut times: Vec<u32>) -> f64 {
    times.sort_unstable();
    quantile(&times, 0.99) / 1000.0
}
