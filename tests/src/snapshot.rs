//! What is there: the rows of the database and what is on the simulated hosts, to be compared.
//!
//! - [`Snapshot`]: everything that a job which was rolled back, or a thing that was removed, must not
//!   leave behind. - [`Database::check_counters`]: sums that are kept beside the rows they are sums of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Context;
use shared::id::HostId;
use sqlx::any::AnyPoolOptions;
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Column, Connection, Row, Transaction};

use crate::sim::Sim;
use crate::sim::state::State;
use crate::wait::eventually;

/// Tables whose rows are history or housekeeping.
const NOT_COMPARED: &[&str] = &[
    "_sqlx_migrations",
    "controller",
    "counter",
    "event",
    "idempotency",
    "job",
    "join_token",
    "ring_change",
    "sqlite_sequence",
    "sqlite_stat1",
    "sqlite_stat4",
];
/// Columns that go on changing by themselves.
const NOT_COMPARED_COLUMNS: &[&str] =
    &["version", "generation", "last_seen_at", "next_ip", "state_since", "available", "agent_id", "boot_id"];

type Table = BTreeSet<String>;

/// A look into the database of a controller, beside it.
pub struct Database {
    pool: AnyPool,
    sqlite: bool,
}

/// Rows by table, and what is on each host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    tables: BTreeMap<String, Table>,
    hosts: BTreeMap<HostId, State>,
}

impl Database {
    /// Opens the database at `url`.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn open(url: &str) -> anyhow::Result<Self> {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new().max_connections(2).connect(url).await?;
        Ok(Self { pool, sqlite: url.starts_with("sqlite:") })
    }

    /// The database and its version.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn version(&self) -> anyhow::Result<String> {
        let sql = if self.sqlite {
            "SELECT 'SQLite', sqlite_version()"
        } else {
            "SELECT 'PostgreSQL', current_setting('server_version')"
        };
        let (name, version) = self.pairs(sql).await?.pop_first().context("the database tells its version")?;
        Ok(format!("{name} {version}"))
    }

    /// All rows of all tables that are compared.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn tables(&self) -> anyhow::Result<BTreeMap<String, Table>> {
        let names = if self.sqlite {
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        } else {
            "SELECT table_name::text AS name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
        };
        let names: Vec<String> =
            sqlx::query(names).fetch_all(&self.pool).await?.iter().map(|row| row.get("name")).collect();
        let mut tables = BTreeMap::new();
        for name in names.into_iter().filter(|name| !NOT_COMPARED.contains(&name.as_str())) {
            let rows = sqlx::query(AssertSqlSafe(format!("SELECT * FROM {name}"))).fetch_all(&self.pool).await?;
            tables.insert(name, rows.iter().map(text).collect());
        }
        Ok(tables)
    }

    /// Carries out statements one after the other, all on one connection and in one transaction.
    ///
    /// # Errors
    /// Names the statement that was refused.
    pub async fn execute_all(&self, statements: &[String]) -> anyhow::Result<()> {
        let mut conn = self.pool.acquire().await?;
        // Rows by the million come in the order of one index and in none of the others': what does not stay in memory
        // would be written again and again.
        let cache = async |conn: &mut AnyConnection, kib: u32| match self.sqlite {
            true => sqlx::query(AssertSqlSafe(format!("PRAGMA cache_size = -{kib}"))).execute(conn).await.map(drop),
            false => Ok(()),
        };
        cache(&mut conn, 1 << 20).await?;
        let mut tx = conn.begin().await?;
        for sql in statements {
            sqlx::query(AssertSqlSafe(sql.clone())).execute(&mut *tx).await.with_context(|| sql.clone())?;
        }
        tx.commit().await?;
        Ok(cache(&mut conn, 2000).await?)
    }

    /// How many rows a query counts.
    ///
    /// # Errors
    /// When the query is refused.
    pub async fn count(&self, query: &'static str) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar::<_, i64>(query).fetch_one(&self.pool).await?)
    }

    /// Compares each sum that the database keeps with the rows that it is the sum of.
    ///
    /// # Errors
    /// Names every sum that is wrong.
    pub async fn check_counters(&self) -> anyhow::Result<()> {
        const SUMS: &[(&str, &str)] = &[
            (
                "vcpus reserved on a host",
                "SELECT COUNT(*) FROM host h WHERE h.vcpus_reserved <> (SELECT CAST(COALESCE(SUM(v.vcpus), 0) AS BIGINT)
                 FROM vm v WHERE (v.host_id = h.id OR v.moving_to = h.id) AND v.holds_compute = 1)",
            ),
            (
                "memory reserved on a host",
                "SELECT COUNT(*) FROM host h WHERE h.memory_reserved <> (SELECT CAST(COALESCE(SUM(v.memory), 0) AS BIGINT)
                 FROM vm v WHERE (v.host_id = h.id OR v.moving_to = h.id) AND v.holds_compute = 1)",
            ),
            (
                "bytes reserved of a storage",
                "SELECT COUNT(*) FROM storage_host s WHERE s.reserved <> (SELECT CAST(COALESCE(SUM(v.size), 0) AS BIGINT)
                 FROM volume v WHERE v.host_id = s.host_id AND v.storage_id = s.storage_id)
                 AND EXISTS (SELECT 1 FROM storage t WHERE t.id = s.storage_id AND t.kind = 'local')",
            ),
            (
                "bytes reserved of a shared storage",
                "SELECT COUNT(*) FROM storage s WHERE s.kind = 'shared' AND s.reserved <>
                 (SELECT CAST(COALESCE(SUM(v.size), 0) AS BIGINT)
                 FROM volume v WHERE v.host_id IS NOT NULL AND v.storage_id = s.id)",
            ),
            ("more vcpus reserved than there are", "SELECT COUNT(*) FROM host WHERE vcpus_reserved > vcpus_total"),
            ("more memory reserved than there is", "SELECT COUNT(*) FROM host WHERE memory_reserved > memory_total"),
            (
                "leases of no VM",
                "SELECT COUNT(*) FROM nic n WHERE NOT EXISTS (SELECT 1 FROM vm v WHERE v.id = n.vm_id)",
            ),
            (
                "root volumes of no VM",
                "SELECT COUNT(*) FROM volume o WHERE o.kind = 'root'
                 AND NOT EXISTS (SELECT 1 FROM vm v WHERE v.root_volume_id = o.id)",
            ),
        ];
        let mut wrong = Vec::new();
        for (what, query) in SUMS {
            let n = self.count(query).await?;
            if n != 0 {
                wrong.push(format!("{what}: {n}"));
            }
        }
        anyhow::ensure!(wrong.is_empty(), "counters do not fit the rows: {}", wrong.join(", "));
        Ok(())
    }

    /// Waits until no job is open and nothing is owed, then compares sums with rows, and rows with hosts.
    ///
    /// # Errors
    /// Names what does not fit.
    pub async fn at_rest(&self, sim: &Sim) -> anyhow::Result<()> {
        eventually("no job is open and nothing is owed", async || {
            let open = self.count("SELECT COUNT(*) FROM job WHERE finished_at IS NULL").await?;
            let owed = self.count("SELECT COUNT(*) FROM cleanup").await?;
            anyhow::ensure!((open, owed) == (0, 0), "{open} jobs are open, {owed} clean-ups are owed");
            Ok(())
        })
        .await?;
        eventually("database and hosts fit each other", async || {
            self.check_counters().await?;
            self.check_hosts(sim).await
        })
        .await
    }

    /// Compares what the database says of each host with what is there: VMs with what they do, and
    /// volumes. A stopped VM may have no domain: it gets one when it starts.
    ///
    /// # Errors
    /// Names what does not fit.
    pub async fn check_hosts(&self, sim: &Sim) -> anyhow::Result<()> {
        let query = "SELECT id, host_id, state FROM vm WHERE host_id IS NOT NULL AND deleted_at IS NULL";
        let rows = sqlx::query(query).fetch_all(&self.pool).await?;
        let vms: Vec<(String, String, String)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        let volumes = self
            .pairs(
                "SELECT id, host_id FROM volume WHERE host_id IS NOT NULL
             AND storage_id IN (SELECT id FROM storage WHERE kind = 'local')",
            )
            .await?;
        let mut wrong = Vec::new();
        for host in sim.hosts() {
            let (state, id) = (host.state().clone(), host.id.to_string());
            let mut found: BTreeMap<String, &str> =
                state.vms.iter().map(|(vm, domain)| (vm.to_string(), domain.power.as_str())).collect();
            for (vm, _, row) in vms.iter().filter(|(_, on, _)| *on == id) {
                match found.remove(vm) {
                    Some(power) if power == row => {}
                    None if row == "stopped" => {}
                    there => wrong.push(format!("VM {vm} is {row}, on {} it is {there:?}", host.name)),
                }
            }
            wrong.extend(found.keys().map(|vm| format!("VM {vm} on {} is in no row", host.name)));
            let rows = volumes.iter().filter(|(_, on)| *on == id).map(|(volume, _)| volume.clone()).collect();
            let found: BTreeSet<_> = state.volumes.keys().map(ToString::to_string).collect();
            wrong.extend(found.symmetric_difference(&rows).map(|v| format!("volume {v} is on one side alone")));
        }
        anyhow::ensure!(wrong.is_empty(), "database and hosts differ: {}", wrong.join("; "));
        Ok(())
    }

    /// Locks the rows of a query until the transaction that is answered ends.
    ///
    /// # Errors
    /// When the query is refused.
    pub async fn hold(&self, query: &'static str) -> anyhow::Result<Transaction<'static, Any>> {
        let mut held = self.pool.begin().await?;
        sqlx::query(query).execute(&mut *held).await?;
        Ok(held)
    }

    /// Has every write of a VM's row wait until the transaction that is answered ends. On SQLite, where there is
    /// one writer, all writes wait, and give up after 10 s.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn hold_vms(&self) -> anyhow::Result<Transaction<'static, Any>> {
        self.hold(if self.sqlite { "DELETE FROM vm WHERE 1 = 0" } else { "LOCK TABLE vm IN EXCLUSIVE MODE" }).await
    }

    /// How often each job's end was told by an event: (job, number).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn ends_of_jobs(&self) -> anyhow::Result<BTreeSet<(String, String)>> {
        self.pairs(if self.sqlite {
            "SELECT json_extract(content, '$.job_id') AS job, CAST(COUNT(*) AS TEXT) AS n
             FROM event WHERE path LIKE '/job/%' GROUP BY 1"
        } else {
            "SELECT (content::json->>'job_id') AS job, CAST(COUNT(*) AS TEXT) AS n
             FROM event WHERE path LIKE '/job/%' GROUP BY 1"
        })
        .await
    }

    /// A connection that writes also while [`Self::set_read_only`] has all others only read.
    async fn writes_anyway(&self) -> anyhow::Result<PoolConnection<Any>> {
        let mut conn = self.pool.acquire().await?;
        sqlx::query("SET default_transaction_read_only = off").execute(&mut *conn).await?;
        Ok(conn)
    }

    /// Has a PostgreSQL server refuse every write from now on, or take them again.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn set_read_only(&self, read_only: bool) -> anyhow::Result<()> {
        let mut conn = self.writes_anyway().await?;
        let sql = if read_only {
            "ALTER SYSTEM SET default_transaction_read_only = on"
        } else {
            "ALTER SYSTEM RESET default_transaction_read_only"
        };
        sqlx::query(sql).execute(&mut *conn).await?;
        sqlx::query("SELECT CAST(pg_reload_conf() AS INT)").execute(&mut *conn).await?;
        Ok(())
    }

    /// Has the database's own clock be one that [`Self::set_clock_ahead`] sets, for connections from now on.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn own_clock(&self) -> anyhow::Result<()> {
        let mut tx = self.pool.begin().await?;
        for sql in [
            "CREATE SCHEMA lab",
            "CREATE TABLE lab.clock (ahead interval NOT NULL)",
            "INSERT INTO lab.clock VALUES (interval '0')",
            "CREATE FUNCTION lab.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE \
             AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM lab.clock'",
            // Before the server's own function of this name, and behind the product's tables.
            "ALTER ROLE CURRENT_USER SET search_path = public, lab, pg_catalog",
        ] {
            sqlx::query(sql).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Sets the database's clock, so many seconds ahead of the right time or behind it.
    ///
    /// # Errors
    /// When the server refuses, or the database has no clock of its own.
    pub async fn set_clock_ahead(&self, seconds: i64) -> anyhow::Result<()> {
        let mut conn = self.writes_anyway().await?;
        let sql = "UPDATE lab.clock SET ahead = $1 * interval '1 second'";
        Ok(sqlx::query(sql).bind(seconds).execute(&mut *conn).await.map(drop)?)
    }

    /// The rows of a query with two columns of text.
    ///
    /// # Errors
    /// When the query is refused.
    pub async fn pairs(&self, query: &'static str) -> anyhow::Result<BTreeSet<(String, String)>> {
        let rows = sqlx::query(query).fetch_all(&self.pool).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// Everything on a host, each thing as text.
fn things(state: &State) -> BTreeSet<String> {
    let vms = state.vms.iter().map(|(id, vm)| format!("{id:?} {vm:?}"));
    let volumes = state.volumes.iter().map(|(id, volume)| format!("{id:?} {volume:?}"));
    let images = state.images.iter().map(|(id, image)| format!("{id:?} {image:?}"));
    let networks = state.networks.iter().map(|id| format!("{id:?}"));
    vms.chain(volumes).chain(images).chain(networks).collect()
}

/// A row as text, without what changes by itself.
fn text(row: &sqlx::any::AnyRow) -> String {
    let mut text = String::new();
    for column in row.columns().iter().filter(|c| !NOT_COMPARED_COLUMNS.contains(&c.name())) {
        let at = column.ordinal();
        let value = row
            .try_get::<Option<String>, _>(at)
            .or_else(|_| row.try_get::<Option<i64>, _>(at).map(|n| n.map(|n| n.to_string())))
            .unwrap_or_default();
        let value = if column.name() == "facts" { value.map(|facts| without_clock(&facts)) } else { value };
        let _ = write!(text, "{}={} ", column.name(), value.as_deref().unwrap_or("-"));
    }
    text
}

/// What a host tells of itself, but for the time at which it did.
fn without_clock(facts: &str) -> String {
    serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(facts).map_or_else(
        |_| facts.to_string(),
        |mut facts| {
            facts.remove("clock_ms");
            serde_json::Value::Object(facts).to_string()
        },
    )
}

impl Snapshot {
    /// What is in the database and on the hosts now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn take(database: &Database, sim: &Sim) -> anyhow::Result<Self> {
        let hosts = sim.hosts().iter().map(|host| (host.id, host.state().clone())).collect();
        Ok(Self { tables: database.tables().await?, hosts })
    }

    /// Leaves out what stays on a host for later use, and counts as nothing: cached images and
    /// networks that are set up, with the rows that note them.
    #[must_use]
    pub fn without_caches(mut self) -> Self {
        self.tables.remove("image_host");
        for state in self.hosts.values_mut() {
            state.images.clear();
            state.networks.clear();
            // Generations only go up.
            state.vms.values_mut().for_each(|domain| domain.generation = 0);
        }
        self
    }

    /// What this has and `before` has not, and the other way round; empty when they are equal.
    #[must_use]
    pub fn difference(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let empty = Table::new();
        let names: BTreeSet<_> = self.tables.keys().chain(before.tables.keys()).collect();
        for name in names {
            let (now, then) = (self.tables.get(name).unwrap_or(&empty), before.tables.get(name).unwrap_or(&empty));
            lines.extend(now.difference(then).map(|row| format!("+ {name}: {row}")));
            lines.extend(then.difference(now).map(|row| format!("- {name}: {row}")));
        }
        for (id, now) in &self.hosts {
            let empty = State::default();
            let then = before.hosts.get(id).unwrap_or(&empty);
            let (now, then) = (things(now), things(then));
            lines.extend(now.difference(&then).map(|thing| format!("+ on host {id}: {thing}")));
            lines.extend(then.difference(&now).map(|thing| format!("- on host {id}: {thing}")));
        }
        lines
    }
}
