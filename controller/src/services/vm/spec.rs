//! The specification of a VM for its host, read from the database when it is needed.

use futures_util::future::try_join_all;
use shared::api::vm::Nic;
use shared::api::volume::Volume;
use shared::id::{HostId, StorageId, VmId};
use shared::wire::host::StorageSpec;
use shared::wire::vm::{CloudInit, DiskSpec, NicSpec, VmSpec};
use shared::wire::volume::VolumeSpec;
use shared::{Code, Error, Result};

use crate::db::vm::Whole;
use crate::db::{self, Conn};
use crate::deps::Deps;
use crate::specs;

/// The host of a VM and what it must be there.
pub(super) async fn build(deps: &Deps, id: VmId) -> Result<(HostId, VmSpec)> {
    let Whole { row, nics, volumes } = deps.db.whole_vms.get(id).await?.ok_or_else(|| Error::not_found("vm", id))?;
    let host =
        row.vm.host_id.ok_or_else(|| Error::new(Code::InvalidState, format!("vm {} is on no host", row.vm.name)))?;
    let disk = |volume: Volume| async move {
        let device = volume.device.clone().unwrap_or_else(|| "vda".to_string());
        Ok::<_, Error>(DiskSpec { volume: volume_spec(deps, &volume).await?, device })
    };
    let card = |nic: Nic| async move {
        let network = deps.db.networks.get(nic.network_id).await?;
        let network = specs::network(&network.ok_or_else(|| Error::not_found("network", nic.network_id))?);
        Ok::<_, Error>(NicSpec { nic_id: nic.id, mac: nic.mac, ip: nic.ip, network })
    };
    let (disks, nics) =
        tokio::try_join!(try_join_all(volumes.into_iter().map(disk)), try_join_all(nics.into_iter().map(card)))?;
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
pub(super) async fn volume_spec(deps: &Deps, volume: &Volume) -> Result<VolumeSpec> {
    let base = async {
        let Some(id) = volume.image_id else { return Ok(None) };
        let image = deps.db.images.get(id).await?.ok_or_else(|| Error::not_found("image", id))?;
        Ok(Some(specs::image(&image, &deps.settings)))
    };
    let (storage, base) = tokio::try_join!(deps.db.storages.get(volume.storage_id), base)?;
    let storage = specs::storage(&storage.ok_or_else(|| Error::not_found("storage", volume.storage_id))?);
    Ok(VolumeSpec { volume_id: volume.id, storage, format: volume.format, size: volume.size, base })
}

/// A storage as its hosts know it.
pub(super) async fn storage_spec(conn: &mut Conn, id: StorageId) -> Result<StorageSpec> {
    let storage = db::storage::without_hosts(conn, id).await?.ok_or_else(|| Error::not_found("storage", id))?;
    Ok(specs::storage(&storage))
}
