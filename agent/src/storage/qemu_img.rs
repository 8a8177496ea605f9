//! `qemu-img`, always told the format explicitly: a guest writes what it likes into its disk, and
//! must not choose how the host reads it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use shared::api::image::DiskFormat;
use shared::units::Bytes;
use shared::{Code, Error, Result};

use crate::cmd::Cmd;
use crate::task::TaskCx;

/// What a disk's file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// Size that a guest sees.
    pub virtual_size: u64,
    /// File that it is based on, as written in the header.
    #[serde(default)]
    pub backing_filename: Option<PathBuf>,
    /// Format of that file.
    #[serde(default)]
    pub backing_filename_format: Option<String>,
}

/// Reads the header of a disk, even while a guest has it.
///
/// # Errors
/// `host_failed` when the file is not of this format.
pub async fn info(path: &Path, format: DiskFormat, cx: &TaskCx) -> Result<Info> {
    let output = Cmd::new("qemu-img")
        .args(["info", "--output=json", "-U", "-f", format.as_str()])
        .arg(path)
        .deadline(cx.deadline)
        .run(&cx.cancel)
        .await?;
    serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::new(Code::HostFailed, "qemu-img says what cannot be read").with_detail(e.to_string()))
}

/// Makes an empty disk, or one based on `base`.
///
/// # Errors
/// `no_space`, `host_failed`.
pub async fn create(
    path: &Path,
    format: DiskFormat,
    size: Bytes,
    base: Option<(&Path, DiskFormat)>,
    cx: &TaskCx,
) -> Result<()> {
    let mut cmd = Cmd::new("qemu-img").args(["create", "-q", "-f", format.as_str()]);
    if let Some((base, base_format)) = base {
        cmd = cmd.arg("-b").arg(base).args(["-F", base_format.as_str()]);
    }
    cmd.arg(path).arg(size.0.to_string()).deadline(cx.deadline).run(&cx.cancel).await?;
    Ok(())
}

/// Copies a disk into another format; holes stay holes.
///
/// # Errors
/// `no_space`, `host_failed`.
pub async fn convert(from: (&Path, DiskFormat), to: (&Path, DiskFormat), cx: &TaskCx) -> Result<()> {
    Cmd::new("qemu-img")
        .args(["convert", "-q", "-f", from.1.as_str(), "-O", to.1.as_str()])
        .args([from.0, to.0])
        .deadline(cx.deadline)
        .run(&cx.cancel)
        .await?;
    Ok(())
}
