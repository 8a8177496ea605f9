//! The specification of a VM for its host, read from the database when it is needed.

use std::collections::HashMap;

use shared::id::{HostId, NetworkId, StorageId, VmId};
use shared::wire::vm::{CloudInit, DiskSpec, NicSpec, VmSpec};
use shared::wire::volume::VolumeSpec;
use shared::{Code, Error, Result};

use crate::db::{self, Conn};
use crate::deps::Deps;
use crate::specs;

/// The host of a VM and what it must be there.
pub(super) async fn build(deps: &Deps, id: VmId) -> Result<(HostId, VmSpec)> {
    let mut conn = deps.db.read().await?;
    let row = db::vm::require(&mut conn, id).await?;
    let host =
        row.vm.host_id.ok_or_else(|| Error::new(Code::InvalidState, format!("vm {} is on no host", row.vm.name)))?;
    let mut disks = Vec::new();
    for volume in db::volume::of_vm(&mut conn, id).await? {
        let device = volume.device.clone().unwrap_or_else(|| "vda".to_string());
        disks.push(DiskSpec { volume: volume_spec(deps, &mut conn, &volume).await?, device });
    }
    let mut networks: HashMap<NetworkId, shared::wire::network::NetworkSpec> = HashMap::new();
    let mut nics = Vec::new();
    for nic in db::nic::of_vm(&mut conn, id).await? {
        let network = match networks.get(&nic.network_id) {
            Some(known) => known.clone(),
            None => {
                let network = db::network::get(&mut conn, nic.network_id).await?;
                let network = network.ok_or_else(|| Error::not_found("network", nic.network_id))?;
                networks.entry(nic.network_id).or_insert(specs::network(&network)).clone()
            }
        };
        nics.push(NicSpec { nic_id: nic.id, mac: nic.mac, ip: nic.ip, network });
    }
    let spec = VmSpec {
        vm_id: id,
        name: row.vm.name.to_string(),
        vcpus: row.vm.vcpus,
        memory: row.vm.memory,
        firmware: row.vm.firmware,
        disks,
        nics,
        cloud_init: CloudInit { hostname: row.vm.hostname, ssh_keys: row.ssh_keys, user_data: row.user_data },
    };
    Ok((host, spec))
}

/// A volume as its host must have it.
pub(super) async fn volume_spec(
    deps: &Deps,
    conn: &mut Conn,
    volume: &shared::api::volume::Volume,
) -> Result<VolumeSpec> {
    let storage = storage_spec(conn, volume.storage_id).await?;
    let base = match volume.image_id {
        None => None,
        Some(image) => {
            let image = db::image::get(conn, image).await?.ok_or_else(|| Error::not_found("image", image))?;
            Some(specs::image(&image, &deps.settings))
        }
    };
    Ok(VolumeSpec { volume_id: volume.id, storage, format: volume.format, size: volume.size, base })
}

/// A storage as its hosts know it.
pub(super) async fn storage_spec(conn: &mut Conn, id: StorageId) -> Result<shared::wire::host::StorageSpec> {
    let storage = db::storage::without_hosts(conn, id).await?.ok_or_else(|| Error::not_found("storage", id))?;
    Ok(specs::storage(&storage))
}
