//! `kring instance-type`: sizes of vms by name.

use clap::Subcommand;
use shared::api::instance_type::{CreateInstanceType, InstanceType};
use shared::id::{InstanceTypeId, ResourceId as _};
use shared::name::Name;
use shared::units::Bytes;

use super::verbs::{self, body};
use crate::cli::ListArgs;
use crate::context::Ctx;
use crate::error::Result;
use crate::output::table::Cell;
use crate::output::view::{Column, Resource};
use crate::resolve::Noun;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an instance type
    #[command(after_help = "Examples:\n  kring instance-type create small --vcpus 1 --memory 1GiB")]
    Create {
        /// Its name
        name: Name,
        /// Virtual processors
        #[arg(long)]
        vcpus: u32,
        /// Memory, such as 1GiB
        #[arg(long, value_name = "SIZE")]
        memory: Bytes,
    },
    /// List instance types
    #[command(after_help = "Examples:\n  kring instance-type list --sort memory")]
    List(ListArgs),
    /// Show all about an instance type
    #[command(after_help = "Examples:\n  kring instance-type show small")]
    Show {
        /// Name or id
        instance_type: String,
    },
    /// Delete instance types; vms that were made with them stay as they are
    #[command(after_help = "Examples:\n  kring instance-type delete small")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "INSTANCE_TYPE")]
        instance_types: Vec<String>,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create { name, vcpus, memory } => {
            let id = InstanceTypeId::new();
            let text = name.to_string();
            let request = body(&CreateInstanceType { id: Some(id), name, vcpus, memory })?;
            verbs::create_direct::<InstanceType>(ctx, &text, id.uuid(), request).await
        }
        Command::List(args) => verbs::list::<InstanceType>(ctx, &args).await,
        Command::Show { instance_type } => verbs::show::<InstanceType>(ctx, &instance_type).await,
        Command::Delete { instance_types } => verbs::delete_direct(ctx, Noun::INSTANCE_TYPE, &instance_types).await,
    }
}

impl Resource for InstanceType {
    const NOUN: Noun = Noun::INSTANCE_TYPE;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |it, _| Cell::new(&it.name)),
        Column::number("vcpus", |it, _| Cell::new(it.vcpus)),
        Column::number("memory", |it, _| Cell::new(it.memory)),
        Column::new("age", |it, view| view.age(it.created_at)),
        Column::new("id", |it, view| view.id(it.id.uuid())),
    ];
}
