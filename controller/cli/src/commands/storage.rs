//! `kring storage`: where volumes are kept.

use clap::{Subcommand, ValueEnum};
use shared::api::storage::{CreateStorage, Storage, StorageCapacity, StorageHost, StorageKind};
use shared::id::{ClusterId, ResourceId as _, StorageId};
use shared::name::Name;
use shared::units::Bytes;
use uuid::Uuid;

use super::verbs::{self, body};
use crate::cli::ListArgs;
use crate::context::Ctx;
use crate::error::Result;
use crate::output::table::{Cell, Tone};
use crate::output::view::{Column, Resource, View};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a storage: a folder on each host of a cluster, or a mount point that its hosts share
    #[command(
        after_help = "Examples:\n  kring storage create ssd --cluster main --path /srv/kring/ssd\n  kring storage create nas --cluster main --path /mnt/nas --kind shared"
    )]
    Create {
        /// Its name
        name: Name,
        /// Cluster whose hosts have it: name or id
        #[arg(long)]
        cluster: String,
        /// Absolute path of the folder, or of the mount point, on the hosts
        #[arg(long)]
        path: String,
        /// Whether each host has its own, or all share one
        #[arg(long, value_enum, default_value = "local")]
        kind: KindArg,
    },
    /// List storages
    #[command(after_help = "Examples:\n  kring storage list")]
    List(ListArgs),
    /// Show all about a storage, host by host
    #[command(after_help = "Examples:\n  kring storage show local")]
    Show {
        /// Name or id
        storage: String,
    },
    /// Delete storages that keep no volume
    #[command(after_help = "Examples:\n  kring storage delete ssd")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "STORAGE")]
        storages: Vec<String>,
    },
}

/// A kind on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// A folder on each host's own disk
    Local,
    /// A file system that the hosts have mounted at the same path
    Shared,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create { name, cluster, path, kind } => {
            let cluster_id = ClusterId::from_uuid(resolve::id(&ctx.client, Noun::CLUSTER, &cluster).await?);
            let id = StorageId::new();
            let text = name.to_string();
            let kind = match kind {
                KindArg::Local => StorageKind::Local,
                KindArg::Shared => StorageKind::Shared,
            };
            let request = body(&CreateStorage { id: Some(id), name, kind, cluster_id, path })?;
            verbs::create_direct::<Storage>(ctx, &text, id.uuid(), request).await
        }
        Command::List(args) => verbs::list::<Storage>(ctx, &args).await,
        Command::Show { storage } => verbs::show::<Storage>(ctx, &storage).await,
        Command::Delete { storages } => verbs::delete_direct(ctx, Noun::STORAGE, &storages).await,
    }
}

/// The storage's own number, or the sum of its hosts'.
fn sum(storage: &Storage, own: fn(&StorageCapacity) -> Bytes, what: fn(&StorageHost) -> Bytes) -> Cell {
    Cell::new(storage.capacity.as_ref().map_or_else(|| storage.hosts.iter().map(what).sum::<Bytes>(), own))
}

impl Resource for Storage {
    const NOUN: Noun = Noun::STORAGE;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |storage, _| Cell::new(&storage.name)),
        Column::new("kind", |storage, _| Cell::new(format!("{:?}", storage.kind).to_lowercase())),
        Column::new("cluster", |storage, view| view.name(storage.cluster_id)),
        Column::number("hosts", |storage, _| Cell::new(storage.hosts.len())),
        Column::number("total", |storage, _| sum(storage, |s| s.total, |h| h.total)),
        Column::number("free", |storage, _| sum(storage, |s| s.available, |h| h.available)),
        Column::number("reserved", |storage, _| sum(storage, |s| s.reserved, |h| h.reserved)),
        Column::wide("path", |storage, _| Cell::new(&storage.path)),
        Column::new("age", |storage, view| view.age(storage.created_at)),
        Column::new("id", |storage, view| view.id(storage.id.uuid())),
    ];

    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        let mut refers = vec![(Noun::CLUSTER, self.cluster_id.uuid())];
        refers.extend(self.hosts.iter().map(|host| (Noun::HOST, host.host_id.uuid())));
        refers
    }

    fn details(&self, view: &View) -> Vec<(String, Vec<Cell>)> {
        let host = |host: &StorageHost| {
            let name = view.name(host.host_id).text;
            if let Some(error) = &host.error {
                return Cell::new(format!("{name}: {error}")).tone(Tone::Bad);
            }
            Cell::new(format!("{name}: {} free of {}, {} reserved", host.available, host.total, host.reserved))
        };
        if self.hosts.is_empty() { Vec::new() } else { vec![("on".into(), self.hosts.iter().map(host).collect())] }
    }
}
