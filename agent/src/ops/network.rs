//! Commands about networks.

use std::sync::Arc;

use shared::wire::Empty;
use shared::wire::network::{DeleteNetwork, EnsureNetwork};
use shared::{Code, Error, Result};

use crate::app::App;
use crate::task::TaskCx;

/// Sets a network up, and repairs what is missing.
///
/// # Errors
/// `host_failed` when a link, rule or daemon cannot be made.
pub async fn ensure(app: &Arc<App>, cx: &TaskCx, command: EnsureNetwork) -> Result<Empty> {
    cx.progress(10, "setting the network up");
    cx.until_cancelled(app.networks.ensure(&command.network, &cx.cancel)).await?;
    Ok(Empty {})
}

/// Takes a network down.
///
/// # Errors
/// `in_use` while a domain of the host, running or not, has a card in it.
pub async fn delete(app: &Arc<App>, cx: &TaskCx, command: DeleteNetwork) -> Result<Empty> {
    let identities = cx.until_cancelled(app.hypervisor.identities()).await?;
    let users = identities.iter().filter(|i| i.nics.iter().any(|n| n.network.network_id == command.network_id));
    let users: Vec<_> = users.map(|i| i.vm_id.to_string()).collect();
    if !users.is_empty() {
        let message = format!("network {} is used by {} VMs on this host", command.network_id, users.len());
        return Err(Error::new(Code::InUse, message).with_detail(users.join(" ")));
    }
    cx.progress(50, "taking the network down");
    cx.until_cancelled(app.networks.delete(command.network_id, &cx.cancel)).await?;
    Ok(Empty {})
}
