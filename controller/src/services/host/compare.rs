//! Bringing a host and the database to agree.
//!
//! One path for a host that has just joined, one that is back, one whose agent was restarted and one
//! that tells of other VMs than it did: ask for everything that is there, write down what the host is,
//! and tell the owner of each VM what differs. Only then does the host count as connected. A listing that fails
//! changes nothing.

use std::collections::HashMap;
use std::time::Duration;

use shared::api::host::{HostAdminState, HostConnection};
use shared::id::{HostId, VmId};
use shared::wire::host::{Finding, Grade, InspectHost, Inventory, StorageSpec};
use shared::wire::vm::VmReport;
use shared::{Error, Result};

use super::join::capacity;
use super::orphans;
use crate::agent_client::{NoProgress, Order};
use crate::cx::Cx;
use crate::db::{self, host::HostRow, vm::OnHost};
use crate::messages::host::{HostConnectionChanged, HostMissed};
use crate::messages::vm::{StartVm, VmLost, VmObserved};
use crate::services::{Context, announce};
use crate::specs;

/// How many VMs are handed to their owners at a time.
const PARALLEL: usize = 32;
/// Version of a row that was not on the host when it was asked; no row has it.
const NOT_YET: i64 = -1;
/// How long a host may take to say what is there.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Compares; answers whether all is as it should be: nothing was left to jobs, and each storage can be used.
pub(super) async fn compare(context: Context, cx: Cx, id: HostId) -> Result<bool> {
    let cx = cx.within(TIMEOUT);
    let mut row = find(&context, id).await?;
    if row.host.connection == HostConnection::Disconnected {
        set_connection(&context, &row, HostConnection::Connecting, Some("it answers again; comparing".into())).await?;
    }
    let pong = context.deps.agents.ping(&row.reference(), cx.left()?.min(Duration::from_secs(10))).await?;
    // Who is commanded from here on; that it was compared is written down at the end.
    row.agent_id = Some(pong.agent_id);
    let storages = storages(&context, &row).await?;
    // Read before the host is asked: what changes from here on makes the host's answer old news.
    let known = {
        let mut conn = context.deps.db.read().await?;
        db::vm::on_host(&mut conn, id).await?
    };
    let inventory = inspect(&context, &cx, &row, &storages).await?;
    write_down(&context, &row, &inventory).await?;
    let rebooted = row.boot_id.is_some_and(|boot_id| boot_id != pong.boot_id);
    let complete = hand_over(&context, &cx, id, known, &inventory.vms, rebooted).await?;
    if complete || !rebooted {
        // Not before every VM was told of it: what ran when the host went down is known by this alone.
        let (now, process) = (context.deps.clock.now(), (pong.boot_id, pong.agent_id));
        context
            .deps
            .db
            .write(move |tx| Box::pin(async move { db::host::set_process(tx, id, process, now).await }))
            .await?;
    }
    orphans::settle(&context, &cx, &row, &inventory, &storages).await?;
    let row = find(&context, id).await?;
    if row.host.connection != HostConnection::Connected {
        set_connection(&context, &row, HostConnection::Connected, None).await?;
        let now = context.deps.clock.now();
        // What was owed because the host was away may succeed now.
        context.deps.db.write(move |tx| Box::pin(async move { db::cleanup::hasten(tx, now).await })).await?;
    }
    // A storage that cannot be used is looked at again with the next ping.
    let storages_good = inventory.storages.iter().all(|storage| storage.error.is_none());
    if storages_good && row.host.admin_state != HostAdminState::Maintenance {
        start_due(&context, id).await?;
    }
    Ok(complete && storages_good)
}

/// A host has missed its pings: what its VMs do is unknown.
pub(super) async fn missed(context: Context, cx: Cx, message: HostMissed) -> Result<()> {
    let row = find(&context, message.id).await?;
    // Here and yet the VMs may not have been told: then this comes again.
    if row.host.connection != HostConnection::Disconnected {
        set_connection(&context, &row, HostConnection::Disconnected, Some(message.reason)).await?;
    }
    let vms = {
        let mut conn = context.deps.db.read().await?;
        db::vm::on_host(&mut conn, message.id).await?
    };
    let lost = vms.into_iter().map(|vm| VmLost { id: vm.id, host_id: message.id }).collect();
    for result in context.bus()?.call_all(&cx, PARALLEL, lost).await {
        result?;
    }
    Ok(())
}

/// Starts the VMs that ran when the host went down.
async fn start_due(context: &Context, id: HostId) -> Result<()> {
    let due = {
        let mut conn = context.deps.db.read().await?;
        db::vm::start_due(&mut conn, id).await?
    };
    for vm in due {
        tracing::info!(vm.id = %vm, host.id = %id, "the host has restarted; a vm that ran on it is started");
        context.bus()?.notify(&Cx::system(TIMEOUT), StartVm { id: vm });
    }
    Ok(())
}

async fn find(context: &Context, id: HostId) -> Result<HostRow> {
    let mut conn = context.deps.db.read().await?;
    db::host::get(&mut conn, id).await?.ok_or_else(|| Error::not_found("host", id))
}

async fn storages(context: &Context, row: &HostRow) -> Result<Vec<StorageSpec>> {
    let mut conn = context.deps.db.read().await?;
    Ok(db::storage::of_cluster(&mut conn, row.host.cluster_id).await?.iter().map(specs::storage).collect())
}

async fn inspect(context: &Context, cx: &Cx, row: &HostRow, storages: &[StorageSpec]) -> Result<Inventory> {
    let command = InspectHost { host_id: row.host.id, storages: storages.to_vec() };
    let order = Order::to(row.agent_id, context.deps.ring.generation(), cx.deadline);
    context.deps.agents.command(&row.reference(), order, &command, &NoProgress).await
}

/// Writes down what the host is and what its storages and image cache hold.
async fn write_down(context: &Context, row: &HostRow, inventory: &Inventory) -> Result<()> {
    let (id, cluster) = (row.host.id, row.host.cluster_id);
    let (settings, now) = (context.deps.settings.clone(), context.deps.clock.now());
    let mut facts = inventory.facts.clone();
    facts.findings.extend(clock(facts.clock_ms, now.ms()));
    let (storages, images) = (inventory.storages.clone(), inventory.images.clone());
    let written = context.deps.db.write(move |tx| {
        Box::pin(async move {
            let total = capacity(tx.conn(), &settings, cluster, &facts).await?;
            db::host::set_facts(tx, id, &facts, total, now).await?;
            for report in &storages {
                db::storage::report(tx, id, report).await?;
            }
            let known = db::image::of_host(tx.conn(), id).await?;
            for image in known.iter().filter(|image| !images.contains(image)) {
                db::image::remove_host(tx, *image, id).await?;
            }
            for image in images.iter().filter(|image| !known.contains(image)) {
                // An image that was deleted while the host was away is left to the clean-up of caches.
                if db::image::get(tx.conn(), *image).await?.is_some() {
                    db::image::add_host(tx, *image, id).await?;
                }
            }
            Ok(())
        })
    });
    Ok(written.await?)
}

/// What is wrong with a host's clock; an older agent does not tell of it.
fn clock(theirs: i64, ours: i64) -> Option<Finding> {
    (theirs != 0).then(|| Finding::of_clock(theirs - ours)).filter(|finding| finding.grade != Grade::Good)
}

/// Tells the owner of each VM, of the database's and of the host's, what the host says of it, unless that is
/// what is written. Answers whether each was looked at.
async fn hand_over(
    context: &Context,
    cx: &Cx,
    host_id: HostId,
    known: Vec<OnHost>,
    reports: &[VmReport],
    rebooted: bool,
) -> Result<bool> {
    let mut reports: HashMap<VmId, VmReport> = reports.iter().map(|report| (report.vm_id, report.clone())).collect();
    let mut observed = Vec::new();
    for vm in known {
        let report = reports.remove(&vm.id);
        let one = VmObserved { id: vm.id, host_id, report, as_of: Some(vm.version), rebooted };
        if vm.moving || !one.is_known(vm.state) {
            observed.push(one);
        }
    }
    // What came meanwhile is looked at with the next comparison.
    let new = |(id, report)| VmObserved { id, host_id, report: Some(report), as_of: Some(NOT_YET), rebooted };
    observed.extend(reports.into_iter().map(new));
    let mut complete = true;
    for result in context.bus()?.call_all(cx, PARALLEL, observed).await {
        complete &= result?;
    }
    Ok(complete)
}

async fn set_connection(context: &Context, row: &HostRow, to: HostConnection, reason: Option<String>) -> Result<()> {
    let (id, from, now) = (row.host.id, row.host.connection, context.deps.clock.now());
    if !from.can_become(to) {
        return Ok(());
    }
    tracing::info!(host.id = %id, host.name = %row.host.name, %from, %to, reason, "the connection of a host changed");
    let changed = context.deps.db.write(move |tx| {
        Box::pin(async move {
            let changed = db::host::set_connection(tx, id, from, to, reason.clone()).await?;
            if changed {
                let content = serde_json::json!({ "from": from, "to": to, "reason": reason });
                announce(tx, id, "connection/changed", None, &content, now)?;
            }
            Ok(changed)
        })
    });
    if changed.await? {
        let event = HostConnectionChanged { host_id: id, connection: to };
        context.bus()?.publish(&Cx::system(TIMEOUT), &event);
    }
    Ok(())
}
