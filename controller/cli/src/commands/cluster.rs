//! `kring cluster`: hosts that share networks and storage.

use clap::{Args, Subcommand};
use shared::api::cluster::{Cluster, CreateCluster};
use shared::id::{ClusterId, ResourceId as _, ZoneId};
use shared::name::Name;
use uuid::Uuid;

use super::verbs::{self, body};
use crate::cli::ListArgs;
use crate::context::Ctx;
use crate::error::Result;
use crate::output::table::Cell;
use crate::output::view::{Column, Resource};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a cluster
    Create(Create),
    /// List clusters
    #[command(after_help = "Examples:\n  kring cluster list")]
    List(ListArgs),
    /// Show all about a cluster
    #[command(after_help = "Examples:\n  kring cluster show main")]
    Show {
        /// Name or id
        cluster: String,
    },
    /// Delete clusters that hold no host
    #[command(after_help = "Examples:\n  kring cluster delete main")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "CLUSTER")]
        clusters: Vec<String>,
    },
}

/// `kring cluster create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kring cluster create main --zone north --cpu-overcommit 4")]
pub struct Create {
    /// Its name
    name: Name,
    /// Zone that it is in: name or id
    #[arg(long)]
    zone: String,
    /// Free text
    #[arg(long, default_value = "")]
    description: String,
    /// Virtual processors per physical one, 0.1 to 100
    #[arg(long, value_name = "RATIO")]
    cpu_overcommit: Option<f64>,
    /// Guest memory per host memory, 0.1 to 10
    #[arg(long, value_name = "RATIO")]
    memory_overcommit: Option<f64>,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create(create) => make(ctx, create).await,
        Command::List(args) => verbs::list::<Cluster>(ctx, &args).await,
        Command::Show { cluster } => verbs::show::<Cluster>(ctx, &cluster).await,
        Command::Delete { clusters } => verbs::delete_direct(ctx, Noun::CLUSTER, &clusters).await,
    }
}

async fn make(ctx: &Ctx, args: Create) -> Result<()> {
    let id = ClusterId::new();
    let name = args.name.to_string();
    let request = CreateCluster {
        id: Some(id),
        name: args.name,
        zone_id: ZoneId::from_uuid(resolve::id(&ctx.client, Noun::ZONE, &args.zone).await?),
        description: args.description,
        cpu_overcommit: args.cpu_overcommit,
        memory_overcommit: args.memory_overcommit,
    };
    verbs::create_direct::<Cluster>(ctx, &name, id.uuid(), body(&request)?).await
}

impl Resource for Cluster {
    const NOUN: Noun = Noun::CLUSTER;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |cluster, _| Cell::new(&cluster.name)),
        Column::new("zone", |cluster, view| view.name(cluster.zone_id)),
        Column::number("cpu_overcommit", |cluster, _| Cell::new(cluster.cpu_overcommit)),
        Column::number("memory_overcommit", |cluster, _| Cell::new(cluster.memory_overcommit)),
        Column::wide("description", |cluster, _| Cell::new(&cluster.description)),
        Column::new("age", |cluster, view| view.age(cluster.created_at)),
        Column::new("id", |cluster, view| view.id(cluster.id.uuid())),
    ];

    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        vec![(Noun::ZONE, self.zone_id.uuid())]
    }
}
