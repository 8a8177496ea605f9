//! Removes everything of Kring from this host: domains, networks, volumes, images, identity. What the
//! operator made by hand stays. Can be run again after it was cut off.

use std::fs;
use std::path::Path;

use shared::Error;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::libvirt::Hypervisor;
use crate::network::Networks;
use crate::storage::{FileError, local};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Domains.
    pub domains: usize,
    /// Networks.
    pub networks: usize,
    /// Volumes, with temporary files of theirs.
    pub volumes: usize,
}

/// Removes everything. `hypervisor` is `None` when the operator says that libvirt is gone.
///
/// # Errors
/// The first thing that could not be removed; domains go first, so that no running guest loses its disk.
pub async fn run(
    config: &Config,
    hypervisor: Option<&dyn Hypervisor>,
    networks: &Networks,
    cancel: &CancellationToken,
) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    if let Some(hypervisor) = hypervisor {
        removed.domains = domains(hypervisor).await?;
        hypervisor.remove_filters().await?;
    }
    removed.networks = networks.list()?.len();
    networks.purge(cancel).await?;
    for storage in local::known_storages(&config.agent.data_dir)? {
        removed.volumes += local::purge(&storage)?;
    }
    remove_tree(&config.image_dir())?;
    remove_tree(&config.agent.run_dir)?;
    // The folder itself may be a mount point, and holds the lock that this process has: its content goes.
    for name in crate::storage::names(&config.agent.data_dir)? {
        remove_tree(&config.agent.data_dir.join(name))?;
    }
    // Both stay when they are not empty or not ours to remove.
    let _ = fs::remove_dir(&config.agent.data_dir);
    Ok(removed)
}

async fn domains(hypervisor: &dyn Hypervisor) -> Result<usize, Error> {
    let listing = hypervisor.list().await?;
    for vm in &listing.vms {
        hypervisor.destroy(vm.vm_id).await?;
        hypervisor.undefine(vm.vm_id).await?;
    }
    Ok(listing.vms.len())
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Err(e) => Err(e),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(FileError::new("could not remove", path, e).into()),
        _ => Ok(()),
    }
}
