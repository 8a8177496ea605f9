//! Commands about volumes.

use std::sync::Arc;

use shared::Result;
use shared::wire::Empty;
use shared::wire::volume::{CreateVolume, DeleteVolume};

use crate::app::App;
use crate::storage::local;
use crate::task::TaskCx;

/// Makes a volume, and brings its base image into the cache first.
///
/// # Errors
/// `conflict` when it exists otherwise, `no_space`, those of the image.
pub async fn create(app: &Arc<App>, cx: &TaskCx, command: CreateVolume) -> Result<Empty> {
    local::ensure(app, cx, &command.volume).await?;
    Ok(Empty {})
}

/// Removes a volume.
///
/// # Errors
/// `in_use` while a domain has it.
pub async fn delete(app: &Arc<App>, cx: &TaskCx, command: DeleteVolume) -> Result<Empty> {
    local::delete(app, cx, command.volume_id, &command.storage).await?;
    Ok(Empty {})
}
