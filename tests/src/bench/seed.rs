//! A controller with very many VMs that run, made without running each: one VM is made through the API, and
//! while the controller is away its rows are multiplied, in the database and on the simulated hosts. The
//! controller then finds a world in which all is as it should be.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use shared::api::vm::Vm;
use shared::id::{VmId, VolumeId};
use shared::units::Bytes;
use shared::wire::vm::PowerState;

use crate::cluster::{Cluster, Setup};
use crate::sim::Host;

/// What begins the ids of what is seeded: 12 digits make them whole.
const VM: &str = "01900000-0000-7000-8000-";
const VOLUME: &str = "01900000-0000-7000-9000-";

/// One VM of so many is paused: a state that few have.
const PAUSED: usize = 1000;

/// The id of the VM with a number.
///
/// # Errors
/// Never for less than 10^12.
pub fn vm_id(n: usize) -> anyhow::Result<VmId> {
    Ok(format!("{VM}{n:012}").parse()?)
}

/// Numbers of VMs, each of which is made of the one before by adding.
#[must_use]
pub fn rising(sizes: &[usize]) -> Vec<usize> {
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// A controller with more and more VMs.
pub struct Seeded {
    /// The controller and its hosts.
    pub cluster: Cluster,
    /// The VM that is multiplied.
    pub vm: Vm,
    there: usize,
}

impl Seeded {
    /// With so many hosts that are pinged in this interval, and nothing seeded.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn begin(hosts: usize, interval: Duration) -> anyhow::Result<Self> {
        let (cluster, vm) = begin(hosts, interval).await?;
        Ok(Self { cluster, vm, there: 0 })
    }

    /// Adds so many hosts, on which nothing is yet.
    ///
    /// # Errors
    /// When one cannot join.
    pub async fn join(&self, hosts: usize) -> anyhow::Result<()> {
        super::hosts::join_all(&self.cluster, hosts).await
    }

    /// Kills the controller and adds what is missing to so many VMs, which must be more than before ([`rising`]).
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn grow(&mut self, to: usize) -> anyhow::Result<()> {
        self.cluster.kill().await?;
        multiply(&self.cluster, &self.vm, self.there, to - self.there).await?;
        self.there = to;
        Ok(())
    }
}

/// A controller with so many hosts that are large enough for any number of VMs and pinged in this interval, and
/// one VM.
async fn begin(hosts: usize, interval: Duration) -> anyhow::Result<(Cluster, Vm)> {
    let host = Some((1 << 20, Bytes::gib(1 << 20)));
    let cluster = Cluster::start_with(Setup { process: true, host, ..Setup::default() }).await?;
    cluster.set("host.ping_interval", interval.as_secs_f64().into()).await?;
    cluster.set("placement.storage_overcommit", 100.into()).await?;
    super::hosts::join_all(&cluster, hosts).await?;
    let (image, network) = (cluster.image().await?, cluster.network_in("10.64.0.0/10").await?);
    let vm = cluster.vm(&image, &network).await?;
    Ok((cluster, vm))
}

/// Multiplies a VM to `count` more, numbered from `first` on and spread over the hosts in turn. The
/// controller must not run.
async fn multiply(cluster: &Cluster, vm: &Vm, first: usize, count: usize) -> anyhow::Result<()> {
    let hosts = cluster.sim.hosts();
    let template = hosts.iter().find(|host| Some(host.id) == vm.host_id).context("the VM has no host")?;
    plant(&hosts, template, vm, first, count)?;
    let numbers = format!(
        "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {})",
        first + count - 1
    );
    let digits = |of: &str, width: usize| format!("substr(CAST(1{} + {of} AS TEXT), 2)", "0".repeat(width));
    let (twelve, id) = (digits("i", 12), vm.id);
    let cards = digits("i", 8);
    // Hosts in the order of the simulator; a table that only this connection sees.
    let mut sql = vec!["CREATE TEMPORARY TABLE place (position BIGINT PRIMARY KEY, host TEXT NOT NULL)".to_string()];
    sql.extend(hosts.chunks(500).enumerate().map(|(n, some)| {
        let rows: Vec<_> =
            some.iter().enumerate().map(|(m, host)| format!("({}, '{}')", n * 500 + m, host.id)).collect();
        format!("INSERT INTO place VALUES {}", rows.join(", "))
    }));
    let of = hosts.len();
    sql.push(format!(
        "INSERT INTO vm (id, name, account_id, state, state_since, hostname, vcpus, memory, instance_type_id, image_id,
             root_volume_id, firmware, host_id, holds_compute, ssh_keys, user_data, created_at, generation, version)
         {numbers} SELECT '{VM}' || {twelve}, 'seed-' || i, account_id,
             CASE WHEN i % {PAUSED} = 0 THEN 'paused' ELSE state END, state_since + i, 'seed-' || i, 1 + i % 4,
             memory * (1 + i % 8), instance_type_id, image_id, '{VOLUME}' || {twelve}, firmware, place.host,
             holds_compute, ssh_keys, user_data, created_at + i, generation, 0
         FROM n JOIN place ON place.position = i % {of} JOIN vm ON vm.id = '{id}'"
    ));
    sql.push(format!(
        "INSERT INTO volume (id, name, account_id, kind, state, size, format, storage_id, host_id, vm_id, device, image_id,
             created_at, version)
         {numbers} SELECT '{VOLUME}' || {twelve}, 'seed-' || i, account_id, kind, state, size, format, storage_id, place.host,
             '{VM}' || {twelve}, device, image_id, created_at, 0
         FROM n JOIN place ON place.position = i % {of} JOIN volume ON volume.vm_id = '{id}'"
    ));
    sql.push(format!(
        "INSERT INTO nic (id, vm_id, network_id, position, mac, ip)
         {numbers} SELECT '01900000-0000-7000-a000-' || {twelve}, '{VM}' || {twelve}, network_id, position,
             '52:54:' || substr({cards}, 1, 2) || ':' || substr({cards}, 3, 2) || ':' || substr({cards}, 5, 2) || ':' || substr({cards}, 7, 2),
             '10.' || (96 + i / 65536) || '.' || (i / 256 % 256) || '.' || (i % 256)
         FROM n JOIN nic ON nic.vm_id = '{id}'"
    ));
    for (table, column, of) in [("host", "vcpus_reserved", "vcpus"), ("host", "memory_reserved", "memory")] {
        sql.push(format!(
            "UPDATE {table} SET {column} = (SELECT CAST(COALESCE(SUM(vm.{of}), 0) AS BIGINT) FROM vm
                 WHERE vm.host_id = host.id AND vm.holds_compute = 1)"
        ));
    }
    // Summed once: looked up for each host, all volumes of the storage would be read for each.
    sql.push(
        "UPDATE storage_host SET reserved = there.size
         FROM (SELECT host_id, storage_id, CAST(SUM(size) AS BIGINT) AS size FROM volume GROUP BY host_id, storage_id) AS there
         WHERE there.host_id = storage_host.host_id AND there.storage_id = storage_host.storage_id"
            .to_string(),
    );
    sql.push("DROP TABLE place".to_string());
    cluster.database.execute_all(&sql).await
}

/// Puts what the rows say onto the hosts.
fn plant(hosts: &[Arc<Host>], template: &Host, vm: &Vm, first: usize, count: usize) -> anyhow::Result<()> {
    let (domain, volume) = {
        let state = template.state();
        let domain = state.vms.get(&vm.id).cloned().context("the VM is not on its host")?;
        let volume = state.volumes.get(&vm.root_volume_id).cloned().context("its volume is not on its host")?;
        (domain, volume)
    };
    for n in first..first + count {
        let root: VolumeId = format!("{VOLUME}{n:012}").parse()?;
        let mut state = hosts[n % hosts.len()].state();
        let mut domain = domain.clone();
        domain.name = format!("seed-{n}");
        if n % PAUSED == 0 {
            domain.power = PowerState::Paused;
        }
        domain.disks = vec![(root, "vda".to_string())];
        state.vms.insert(vm_id(n)?, domain);
        state.volumes.insert(root, volume.clone());
    }
    Ok(())
}
