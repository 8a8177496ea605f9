//! `kring volume`: the disks of vms.

use clap::{Args, Subcommand};
use shared::api::image::DiskFormat;
use shared::api::volume::{CreateVolume, Volume};
use shared::id::{ResourceId as _, StorageId, VolumeId};
use shared::name::Name;
use shared::units::Bytes;
use uuid::Uuid;

use super::image::FormatArg;
use super::verbs::{self, Change, body, change, change_each};
use super::vm::{attach, detach};
use crate::cli::{ChangeArgs, ListArgs};
use crate::context::Ctx;
use crate::error::Result;
use crate::output::table::Cell;
use crate::output::view::{Column, Resource};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an empty data volume
    Create(Create),
    /// List volumes
    #[command(after_help = "Examples:\n  kring volume list\n  kring volume list -q 'state = available'")]
    List(ListArgs),
    /// Show all about a volume
    #[command(after_help = "Examples:\n  kring volume show data")]
    Show {
        /// Name or id
        volume: String,
    },
    /// Give a volume to a vm, running or stopped
    #[command(after_help = "Examples:\n  kring volume attach data web")]
    Attach {
        /// Name or id of the volume
        volume: String,
        /// Name or id of the vm
        vm: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take a volume from its vm, running or stopped
    #[command(after_help = "Examples:\n  kring volume detach data")]
    Detach {
        /// Name or id
        volume: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Delete volumes and what is on them, for good
    #[command(after_help = "Examples:\n  kring volume delete data")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// `kring volume create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kring volume create data --size 100GiB\n  kring volume create fast --size 10GiB --format raw --storage ssd"
)]
pub struct Create {
    /// Its name
    name: Name,
    /// Its size, such as 10GiB
    #[arg(long)]
    size: Bytes,
    /// Its format; qcow2 when not given
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// Storage that keeps it: name or id; the first of the cluster when not given
    #[arg(long)]
    storage: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create(create) => make(ctx, create).await,
        Command::List(args) => verbs::list::<Volume>(ctx, &args).await,
        Command::Show { volume } => verbs::show::<Volume>(ctx, &volume).await,
        Command::Attach { volume, vm, change } => {
            let vm = resolve::id(&ctx.client, Noun::VM, &vm).await?;
            attach(ctx, &volume, vm, &change).await
        }
        Command::Detach { volume, change } => detach(ctx, &volume, None, &change).await,
        Command::Delete { volumes, change } => {
            let make = |name: &str, id: Uuid| Change::delete(Noun::VOLUME, name, id, "deleted");
            change_each(ctx, Noun::VOLUME, &volumes, &change, make).await
        }
    }
}

async fn make(ctx: &Ctx, args: Create) -> Result<()> {
    let storage_id = match &args.storage {
        Some(given) => Some(StorageId::from_uuid(resolve::id(&ctx.client, Noun::STORAGE, given).await?)),
        None => None,
    };
    let id = VolumeId::new();
    let name = args.name.to_string();
    let format = args.format.map(DiskFormat::from);
    let request = CreateVolume { id: Some(id), name: args.name, size: args.size, format, storage_id };
    change(ctx, Change::create(Noun::VOLUME, &name, id.uuid(), body(&request)?), &args.change).await
}

impl Resource for Volume {
    const NOUN: Noun = Noun::VOLUME;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |volume, _| Cell::new(&volume.name)),
        Column::new("state", |volume, _| Cell::state(volume.state.as_str())),
        Column::new("kind", |volume, _| Cell::new(format!("{:?}", volume.kind).to_lowercase())),
        Column::number("size", |volume, _| Cell::new(volume.size)),
        Column::new("vm", |volume, view| view.maybe_name(volume.vm_id)),
        Column::new("device", |volume, _| Cell::new(volume.device.as_deref().unwrap_or_default())),
        Column::wide("format", |volume, _| Cell::new(volume.format.as_str())),
        Column::wide("storage", |volume, view| view.name(volume.storage_id)),
        Column::new("host", |volume, view| view.maybe_name(volume.host_id)),
        Column::wide("image", |volume, view| view.maybe_name(volume.image_id)),
        Column::new("age", |volume, view| view.age(volume.created_at)),
        Column::new("id", |volume, view| view.id(volume.id.uuid())),
    ];

    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        let mut refers = vec![(Noun::STORAGE, self.storage_id.uuid())];
        refers.extend(self.vm_id.map(|id| (Noun::VM, id.uuid())));
        refers.extend(self.host_id.map(|id| (Noun::HOST, id.uuid())));
        refers.extend(self.image_id.map(|id| (Noun::IMAGE, id.uuid())));
        refers
    }
}
