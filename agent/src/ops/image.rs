//! Commands about images.

use std::sync::Arc;

use shared::Result;
use shared::wire::Empty;
use shared::wire::image::{DeleteImage, EnsureImage, ImageInfo};

use crate::app::App;
use crate::task::TaskCx;

/// Brings an image into the cache.
///
/// # Errors
/// `download_failed`, `checksum_mismatch`, `image_rejected`, `no_space`.
pub async fn ensure(app: &Arc<App>, cx: &TaskCx, command: EnsureImage) -> Result<ImageInfo> {
    Ok(app.images.ensure(app, cx, &command.image).await?.info)
}

/// Removes an image from the cache.
///
/// # Errors
/// `in_use` while a volume on this host is based on it.
pub async fn delete(app: &Arc<App>, cx: &TaskCx, command: DeleteImage) -> Result<Empty> {
    app.images.delete(app, cx, command.image_id, &command.storages).await?;
    Ok(Empty {})
}
