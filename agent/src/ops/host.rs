//! Commands about the host: its facts, and everything of Kring that is on it.
//!
//! A part that cannot be read makes the whole answer an error: what is missing from a list would
//! be taken for gone.

use std::sync::Arc;
use std::time::Duration;

use shared::id::TaskId;
use shared::units::Bytes;
use shared::wire::host::{Finding, Grade, HostFacts, InspectHost, Inventory, StorageReport, StorageSpec};
use shared::{Code, Error, Result};
use tokio::time::Instant;

use crate::app::App;
use crate::check;
use crate::storage::local;
use crate::task::TaskCx;

/// How long facts and inventory may take when no command says it.
const LIMIT: Duration = Duration::from_secs(30);

/// Facts and everything of Kring on the host, with the storages that the controller names.
///
/// # Errors
/// `invalid_request` for another host, and whatever keeps one part from being read.
pub async fn inspect(app: &Arc<App>, cx: &TaskCx, command: InspectHost) -> Result<Inventory> {
    let own = app.identity.load().host_id;
    if command.host_id != own {
        return Err(Error::new(Code::InvalidRequest, format!("this is host {own}, and not {}", command.host_id)));
    }
    look(app, cx, command.storages).await
}

/// The facts.
///
/// # Errors
/// `deadline_exceeded` when the host does not tell them in time.
pub async fn facts(app: &Arc<App>) -> Result<HostFacts> {
    let choice = app.config.libvirt.virt_mode;
    let gather = crate::facts::gather(app.hypervisor.as_ref(), choice);
    short(app).until_cancelled(async { Ok::<_, Error>(gather.await) }).await
}

/// Everything of Kring, with the storages that the host knows by itself.
///
/// # Errors
/// Whatever keeps one part from being read.
pub async fn inventory(app: &Arc<App>) -> Result<Inventory> {
    look(app, &short(app), local::known_storages(&app.config.agent.data_dir)?).await
}

/// How long what was found of the host counts.
const CHECK_AGAIN: Duration = Duration::from_secs(300);

fn short(app: &App) -> TaskCx {
    TaskCx::new(TaskId::new(), 0, Instant::now() + LIMIT, app.shutdown.child_token())
}

async fn look(app: &Arc<App>, cx: &TaskCx, storages: Vec<StorageSpec>) -> Result<Inventory> {
    cx.progress(10, "asks libvirt");
    let facts = cx.until_cancelled(async {
        Ok::<_, Error>(crate::facts::gather(app.hypervisor.as_ref(), app.config.libvirt.virt_mode).await)
    });
    let listing = cx.until_cancelled(app.hypervisor.list());
    let networks = async { Ok::<_, Error>(app.networks.list()?) };
    let disks = cx.until_cancelled(on_disks(app, cx, storages));
    let (mut facts, listing, networks, disks) = tokio::try_join!(facts, listing, networks, disks)?;
    facts.findings = findings(app).await;
    facts.clock_ms = check::now_ms();
    Ok(Inventory {
        facts,
        vms: listing.vms,
        foreign_domains: listing.foreign,
        volumes: disks.volumes,
        images: disks.images,
        networks,
        storages: disks.storages,
    })
}

/// What is not as it should be on the host; looked at again after some minutes.
async fn findings(app: &Arc<App>) -> Vec<Finding> {
    let mut checked = app.checked.lock().await;
    if let Some((at, findings)) = checked.as_ref()
        && at.elapsed() < CHECK_AGAIN
    {
        return findings.clone();
    }
    let mut findings = check::run(&app.config, app.hypervisor.as_ref()).await;
    findings.retain(|finding| finding.grade != Grade::Good);
    *checked = Some((Instant::now(), findings.clone()));
    findings
}

/// The part of an inventory that lies on disks.
async fn on_disks(app: &Arc<App>, cx: &TaskCx, storages: Vec<StorageSpec>) -> Result<Inventory> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for storage in storages {
        // One that is lost is told of, and does not hide the others.
        match local::look(app, cx, &storage).await {
            Ok(()) => good.push(storage),
            Err(error) => {
                tracing::warn!(storage.id = %storage.storage_id, error = error.chain(), "a storage cannot be used");
                let (storage_id, error) = (storage.storage_id, Some(error.chain()));
                bad.push(StorageReport { storage_id, total: Bytes(0), available: Bytes(0), error });
            }
        }
    }
    let app = Arc::clone(app);
    let look = move || {
        let mut found = Inventory { images: app.images.list()?, storages: bad, ..Inventory::default() };
        for storage in &good {
            found.storages.push(local::report(&app.config.agent.data_dir, storage)?);
            found.volumes.extend(local::list(storage)?.into_iter().map(|id| (storage.storage_id, id)));
        }
        Ok(found)
    };
    tokio::task::spawn_blocking(look).await.map_err(Error::internal)?
}
