//! What is on a host and belongs to nothing that the database knows.
//!
//! Caches and networks of resources that were deleted while the host was away are removed: nothing is
//! lost with them, and the agent refuses while something uses them. Volumes and domains are told of by
//! an event and left alone, since the database may be an old copy; the setting `host.remove_orphans`
//! removes them too.

use std::collections::HashSet;

use shared::api::host::HostConnection;
use shared::id::{HostId, ImageId, NetworkId, ResourceId, StorageId, VmId, VolumeId};
use shared::wire::AgentCommand;
use shared::wire::host::{Inventory, StorageSpec};
use shared::wire::image::DeleteImage;
use shared::wire::network::DeleteNetwork;
use shared::wire::vm::DeleteVm;
use shared::wire::volume::DeleteVolume;
use shared::{Code, Result};

use crate::agent_client::{NoProgress, Order};
use crate::cx::Cx;
use crate::db::{self, host::HostRow};
use crate::services::{Context, announce};

/// What a host has too much of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Orphans {
    images: Vec<ImageId>,
    networks: Vec<NetworkId>,
    volumes: Vec<(StorageId, VolumeId)>,
    vms: Vec<VmId>,
}

/// Finds what belongs to nothing, removes what may be removed and tells of the rest. `storages` are
/// those of the host's cluster.
pub(super) async fn settle(
    context: &Context,
    cx: &Cx,
    row: &HostRow,
    inventory: &Inventory,
    storages: &[StorageSpec],
) -> Result<()> {
    let orphans = find(context, inventory).await?;
    for image_id in orphans.images {
        remove(context, cx, row, &DeleteImage { image_id, storages: Vec::new() }).await?;
    }
    for network_id in orphans.networks {
        remove(context, cx, row, &DeleteNetwork { network_id }).await?;
    }
    let removes = context.deps.settings.boolean("host.remove_orphans");
    for vm_id in orphans.vms {
        if removes {
            remove(context, cx, row, &DeleteVm { vm_id }).await?;
        } else {
            tell(context, row.host.id, "vm", vm_id).await?;
        }
    }
    for (storage_id, volume_id) in orphans.volumes {
        match storages.iter().find(|storage| storage.storage_id == storage_id) {
            Some(storage) if removes => {
                let command = DeleteVolume { volume_id, storage: storage.clone() };
                remove(context, cx, row, &command).await?;
            }
            _ => tell(context, row.host.id, "volume", volume_id).await?,
        }
    }
    Ok(())
}

async fn find(context: &Context, inventory: &Inventory) -> Result<Orphans> {
    let mut conn = context.deps.db.read().await?;
    let mut orphans = Orphans::default();
    for id in &inventory.images {
        if db::image::get(&mut conn, *id).await?.is_none() {
            orphans.images.push(*id);
        }
    }
    for id in &inventory.networks {
        if db::network::get(&mut conn, *id).await?.is_none() {
            orphans.networks.push(*id);
        }
    }
    let volumes: Vec<VolumeId> = inventory.volumes.iter().map(|(_, id)| *id).collect();
    let known: HashSet<VolumeId> = db::volume::known(&mut conn, &volumes).await?.into_iter().collect();
    orphans.volumes = inventory.volumes.iter().copied().filter(|(_, id)| !known.contains(id)).collect();
    for report in &inventory.vms {
        if db::vm::get(&mut conn, report.vm_id).await?.is_none() {
            orphans.vms.push(report.vm_id);
        }
    }
    Ok(orphans)
}

/// Removes one thing; that something still uses it is no failure.
async fn remove<C: AgentCommand>(context: &Context, cx: &Cx, row: &HostRow, command: &C) -> Result<()> {
    debug_assert_ne!(row.host.connection, HostConnection::Disconnected, "only a host that answers is compared");
    tracing::info!(host.id = %row.host.id, command = C::PATH, resource.id = %command.resource(), "removing what belongs to nothing");
    let order = Order::to(row.agent_id, context.deps.ring.generation(), cx.deadline);
    match context.deps.agents.command(&row.reference(), order, command, &NoProgress).await {
        Err(error) if error.code == Code::InUse => {
            tracing::warn!(host.id = %row.host.id, command = C::PATH, error = error.chain(), "left alone");
            Ok(())
        }
        result => result.map(|_| ()),
    }
}

/// Tells, once per comparison, that something on a host belongs to nothing.
async fn tell<I: ResourceId>(context: &Context, host: HostId, noun: &'static str, id: I) -> Result<()> {
    tracing::warn!(host.id = %host, orphan.kind = noun, orphan.id = %id, "a host has something that the database does not know");
    let now = context.deps.clock.now();
    let written = context.deps.db.write(move |tx| {
        Box::pin(async move {
            let content = serde_json::json!({ "kind": noun, "id": id.uuid() });
            announce(tx, host, "orphan/found", None, &content, now)
        })
    });
    Ok(written.await?)
}
