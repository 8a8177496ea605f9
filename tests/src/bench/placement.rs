//! `placement`: decisions among very many hosts, and a thousand VMs that want a place at the same moment when
//! there is room for nine hundred.

use std::collections::HashMap;
use std::time::Instant;

use controller::db::{self, Db, query, query_of};
use controller::placement::{Placement, Request};
use futures_util::future::join_all;
use shared::Code;
use shared::id::{ClusterId, HostId, StorageId};
use shared::units::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Bench, process, quantile};

/// Decisions at each size.
const DECISIONS: usize = 2000;
/// Clusters that the hosts are in, in turn.
const CLUSTERS: usize = 10;
/// One host of so many has an interface that some networks need.
const RARE: usize = 100;
/// Places that are asked for with each decision, as the service does.
const MOST: usize = 8;
/// VMs that come at the same moment, and those of them that there is room for.
const AT_ONCE: usize = 1000;
const ROOM: usize = 900;

/// Measures with so many hosts, one number after the other.
///
/// # Errors
/// When anything fails.
pub async fn run(sizes: &[usize]) -> anyhow::Result<()> {
    let mut bench = Bench::begin("placement")?.on(super::SQLITE);
    for &size in sizes {
        let world = World::make(size).await?;
        world.read(&mut bench).await?;
        world.decide(&mut bench).await?;
        world.refuse(&mut bench).await?;
        world.all_at_once(&mut bench).await?;
        world.end().await;
    }
    bench.end()
}

/// A database with hosts, and the placement that looks at them.
struct World {
    size: usize,
    db: Db,
    placement: std::sync::Arc<Placement>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

fn host_id(n: usize) -> anyhow::Result<HostId> {
    Ok(format!("01900000-0000-7000-8000-{n:012}").parse()?)
}

fn cluster_id(n: usize) -> anyhow::Result<ClusterId> {
    Ok(format!("01900000-0000-7000-9000-{n:012}").parse()?)
}

fn storage_id(n: usize) -> anyhow::Result<StorageId> {
    Ok(format!("01900000-0000-7000-a000-{n:012}").parse()?)
}

/// Asks for little; the loads of hosts differ.
fn modest() -> Request {
    Request {
        vcpus: 2,
        memory: Bytes::gib(2),
        disk: Bytes::gib(10),
        storage: None,
        on: Vec::new(),
        cluster: None,
        host: None,
        not_host: None,
        uplinks: Vec::new(),
        storage_overcommit: 1.0,
    }
}

impl World {
    async fn make(size: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let db = Db::open(&Db::sqlite_url(folder.path()), &tasks).await?;
        let (twelve, last) = ("substr(CAST(1000000000000 + i AS TEXT), 2)", size - 1);
        let numbers = format!("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {last})");
        let mut rows =
            vec!["INSERT INTO zone (id, name, description, created_at) VALUES ('z', 'z', '', 0)".to_string()];
        for n in 0..CLUSTERS {
            let (cluster, storage) = (cluster_id(n)?, storage_id(n)?);
            rows.push(format!(
                "INSERT INTO cluster (id, name, zone_id, description, cpu_overcommit, memory_overcommit, created_at)
                 VALUES ('{cluster}', 'c{n}', 'z', '', 1, 1, 0)"
            ));
            rows.push(format!(
                "INSERT INTO storage (id, name, kind, cluster_id, path, created_at)
                 VALUES ('{storage}', 's{n}', 'local', '{cluster}', '/srv', 0)"
            ));
        }
        rows.push(format!(
            "INSERT INTO host (id, name, cluster_id, address, admin_state, connection, arch, vcpus_total, vcpus_reserved,
                 memory_total, memory_reserved, facts, created_at, nics, version)
             {numbers} SELECT '01900000-0000-7000-8000-' || {twelve}, 'h' || i,
                 '01900000-0000-7000-9000-' || substr(CAST(1000000000000 + i % {CLUSTERS} AS TEXT), 2), 'a:' || i,
                 CASE WHEN i % 50 = 7 THEN 'maintenance' ELSE 'enabled' END,
                 CASE WHEN i % 50 = 9 THEN 'disconnected' ELSE 'connected' END, 'x86_64', 6400, i % 40, 17592186044416,
                 1073741824 * (i % 100), '{{}}', 0, CASE WHEN i % {RARE} = 3 THEN ' eth0 eth1 ' ELSE ' eth0 ' END, 0 FROM n"
        ));
        let storages = "INSERT INTO storage_host (storage_id, host_id, total, available, reserved)
             SELECT storage.id, host.id, 109951162777600, 109951162777600, 0
             FROM host JOIN storage ON storage.cluster_id = host.cluster_id";
        rows.push(storages.to_string());
        let insert = db.write(move |tx| {
            Box::pin(async move {
                for sql in rows {
                    query_of(sql).execute(tx.conn()).await?;
                }
                Ok(())
            })
        });
        insert.await?;
        let placement = Placement::start(db.clone(), &tasks, stop.clone());
        Ok(Self { size, db, placement, tasks, stop, _folder: folder })
    }

    async fn end(self) {
        self.stop.cancel();
        self.db.close().await;
        drop(self.db);
        self.tasks.close();
    }

    /// The first who asks has all hosts read.
    async fn read(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let begin = Instant::now();
        self.placement.shortlist(&modest(), MOST).await?;
        bench.point((self.size, "hosts"), "all hosts read", begin.elapsed().as_secs_f64() * 1000.0, "ms", "");
        Ok(())
    }

    /// One after the other, of five kinds in turn, with every filter at work.
    async fn decide(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let me = std::process::id();
        let (mut times, cpu) = (Vec::with_capacity(DECISIONS), process::cpu_seconds(me)?);
        for n in 0..DECISIONS {
            let cluster = Some(cluster_id(n % CLUSTERS)?);
            let request = match n % 5 {
                0 => modest(),
                1 => Request { cluster, storage: Some(storage_id(n % CLUSTERS)?), ..modest() },
                // The hosts with this interface are all in one cluster.
                2 => Request { uplinks: vec!["eth1".to_string()], not_host: Some(host_id(3)?), ..modest() },
                // Its volumes are to be on certain storages.
                3 => Request { on: vec![(storage_id(n % CLUSTERS)?, Bytes::gib(10))], ..modest() },
                _ => Request {
                    host: Some(host_id(n * 7919 % self.size / 50 * 50)?),
                    vcpus: 1,
                    memory: Bytes::mib(64),
                    ..modest()
                },
            };
            let begin = Instant::now();
            self.placement.shortlist(&request, MOST).await?;
            times.push(u32::try_from(begin.elapsed().as_nanos() / 100).unwrap_or(u32::MAX));
        }
        let cpu = process::cpu_seconds(me)? - cpu;
        times.sort_unstable();
        let of = (self.size, "hosts");
        bench.point(of, "a decision, p50", quantile(&times, 0.5) / 10_000.0, "ms", "");
        bench.point(of, "a decision, p99", quantile(&times, 0.99) / 10_000.0, "ms", "at most 1");
        bench.point(of, "CPU a decision, with reading them again", cpu * 1000.0 / DECISIONS as f64, "ms", "");
        Ok(())
    }

    /// What no host can take.
    async fn refuse(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let begin = Instant::now();
        let refused = self.placement.shortlist(&Request { vcpus: 7000, ..modest() }, MOST).await;
        anyhow::ensure!(refused.is_err_and(|error| error.code == Code::NoHostFits), "7000 processors were found");
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        bench.point((self.size, "hosts"), "a refusal", took, "ms", "");
        Ok(())
    }

    /// More come than there is room for.
    async fn all_at_once(&self, bench: &mut Bench) -> anyhow::Result<()> {
        // Room for nine hundred, on a few hosts.
        let update = self.db.write(|tx| {
            Box::pin(async move {
                query("UPDATE host SET vcpus_reserved = vcpus_total").execute(tx.conn()).await?;
                let sql = "UPDATE host SET vcpus_reserved = vcpus_total - 18
                           WHERE id IN (SELECT id FROM host WHERE connection = 'connected' AND admin_state = 'enabled' ORDER BY id LIMIT $1)";
                query(sql).bind((ROOM / 9) as i64).execute(tx.conn()).await.map(drop)
            })
        });
        update.await?;
        // What was written past it would be known only after a while.
        let placement = Placement::start(self.db.clone(), &self.tasks, self.stop.clone());
        placement.plan(&modest()).await?;
        let begin = Instant::now();
        let placed = join_all((0..AT_ONCE).map(|_| self.place(&placement))).await;
        let took = begin.elapsed().as_secs_f64();
        let mut on: HashMap<HostId, usize> = HashMap::new();
        for host in placed.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten() {
            *on.entry(host).or_default() += 1;
        }
        let (all, most) = (on.values().sum::<usize>(), on.values().max().copied().unwrap_or(0));
        anyhow::ensure!(all == ROOM && most == 9, "{all} of {ROOM} were placed, {most} on one host");
        bench.point((self.size, "hosts"), "1,000 at once, room for 900: all placed or refused", took, "s", "");
        Ok(())
    }

    /// As a VM is placed: the best that still has room when it is reserved.
    async fn place(&self, placement: &Placement) -> anyhow::Result<Option<HostId>> {
        loop {
            let found = match placement.shortlist(&modest(), MOST).await {
                Ok(found) => found,
                Err(error) if error.code == Code::NoHostFits => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let reserved = self.db.write(move |tx| {
                Box::pin(async move {
                    for (host, _) in found {
                        if db::host::reserve(tx, host, 2, Bytes::gib(2), true).await? {
                            return Ok(Some(host));
                        }
                    }
                    Ok(None)
                })
            });
            if let Some(host) = reserved.await? {
                return Ok(Some(host));
            }
        }
    }
}
