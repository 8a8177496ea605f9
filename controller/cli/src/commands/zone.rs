//! `kring zone`: failure domains.

use clap::Subcommand;
use shared::api::zone::{CreateZone, Zone};
use shared::id::{ResourceId as _, ZoneId};
use shared::name::Name;

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
    /// Make a zone
    #[command(after_help = "Examples:\n  kring zone create north --description 'hall 1'")]
    Create {
        /// Its name
        name: Name,
        /// Free text
        #[arg(long, default_value = "")]
        description: String,
    },
    /// List zones
    #[command(after_help = "Examples:\n  kring zone list")]
    List(ListArgs),
    /// Show all about a zone
    #[command(after_help = "Examples:\n  kring zone show north")]
    Show {
        /// Name or id
        zone: String,
    },
    /// Delete zones that hold no cluster
    #[command(after_help = "Examples:\n  kring zone delete north")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "ZONE")]
        zones: Vec<String>,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create { name, description } => {
            let id = ZoneId::new();
            let text = name.to_string();
            let request = body(&CreateZone { id: Some(id), name, description })?;
            verbs::create_direct::<Zone>(ctx, &text, id.uuid(), request).await
        }
        Command::List(args) => verbs::list::<Zone>(ctx, &args).await,
        Command::Show { zone } => verbs::show::<Zone>(ctx, &zone).await,
        Command::Delete { zones } => verbs::delete_direct(ctx, Noun::ZONE, &zones).await,
    }
}

impl Resource for Zone {
    const NOUN: Noun = Noun::ZONE;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |zone, _| Cell::new(&zone.name)),
        Column::new("description", |zone, _| Cell::new(&zone.description)),
        Column::new("age", |zone, view| view.age(zone.created_at)),
        Column::new("id", |zone, view| view.id(zone.id.uuid())),
    ];
}
