//! `kring controller`: who shares the work; `kring ring`: who owns what.

use clap::Subcommand;
use reqwest::Method;
use shared::api::controller::{Controller, ControllerState, Health, Ownership};
use shared::id::ResourceId as _;

use super::verbs;
use crate::cli::ListArgs;
use crate::client::Call;
use crate::context::Ctx;
use crate::error::Result;
use crate::output::table::{Cell, Tone};
use crate::output::view::{Column, Resource};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List controllers with their share of the work
    #[command(after_help = "Examples:\n  kring controller list\n  kring controller list --full")]
    List(ListArgs),
    /// Show all about a controller
    #[command(after_help = "Examples:\n  kring controller show 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11")]
    Show {
        /// Its id
        #[arg(value_name = "CONTROLLER")]
        id: String,
    },
    /// Let a controller give its work to the others, so that it can be stopped without a failed call
    #[command(after_help = "Examples:\n  kring controller drain 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11")]
    Drain {
        /// Its id
        #[arg(value_name = "CONTROLLER")]
        id: String,
    },
    /// Let a drained controller work again
    #[command(after_help = "Examples:\n  kring controller activate 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11")]
    Activate {
        /// Its id
        #[arg(value_name = "CONTROLLER")]
        id: String,
    },
}

/// The verbs of the ring.
#[derive(Debug, Subcommand)]
pub enum RingCommand {
    /// Show which controller owns a resource, and since when
    #[command(after_help = "Examples:\n  kring ring show 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11")]
    Show {
        /// Whole id of the resource, of any kind
        id: String,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::List(args) => verbs::list::<Controller>(ctx, &args).await,
        Command::Show { id } => {
            let body = ctx.client.send(Call::get(&path_of(&id)?)).await?.body;
            verbs::print_one::<Controller>(ctx, &body).await
        }
        Command::Drain { id } => change(ctx, &id, "drain").await,
        Command::Activate { id } => change(ctx, &id, "activate").await,
    }
}

/// Runs a verb of the ring.
pub async fn run_ring(ctx: &Ctx, command: RingCommand) -> Result<()> {
    let RingCommand::Show { id } = command;
    let id = resolve::whole_id(&id, "kring vm list --full")?;
    let body = ctx.client.send(Call::get(&format!("/ring/{id}"))).await?.body;
    verbs::print_one::<Ownership>(ctx, &body).await
}

async fn change(ctx: &Ctx, given: &str, action: &str) -> Result<()> {
    let path = format!("{}/{action}", path_of(given)?);
    let body = ctx.client.send(Call::new(Method::POST, &path)).await?.body;
    verbs::print_one::<Controller>(ctx, &body).await
}

fn path_of(given: &str) -> Result<String> {
    Ok(Noun::CONTROLLER.path_of(resolve::whole_id(given, "kring controller list")?))
}

fn health(health: &Health) -> Cell {
    match (&health.error, health.healthy) {
        (None, true) => Cell::new(&health.kind),
        (error, _) => {
            let why = error.as_deref().unwrap_or("not well");
            Cell::new(format!("{}: {why}", health.kind)).tone(Tone::Bad)
        }
    }
}

impl Resource for Controller {
    const NOUN: Noun = Noun::CONTROLLER;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("id", |controller, _| Cell::new(controller.id)),
        Column::new("state", |controller, _| match controller.state {
            ControllerState::Active => Cell::state("active"),
            ControllerState::Joining | ControllerState::Draining => {
                Cell::new(controller.state.as_str()).tone(Tone::Busy)
            }
        }),
        Column::number("share", |controller, _| Cell::new(format!("{:.1} %", controller.share * 100.0))),
        Column::new("address", |controller, _| Cell::new(&controller.address)),
        Column::new("version", |controller, _| Cell::new(&controller.version)),
        Column::number("generation", |controller, _| Cell::new(controller.generation)),
        Column::new("bus", |controller, _| health(&controller.report.bus)),
        Column::new("database", |controller, _| health(&controller.report.database)),
        Column::wide("services", |controller, _| Cell::new(controller.report.services.join(", "))),
        Column::new("seen", |controller, view| view.age(controller.heartbeat_at)),
        Column::new("age", |controller, view| view.age(controller.started_at)),
    ];
}

impl Resource for Ownership {
    const NOUN: Noun = Noun::CONTROLLER;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("id", |ownership, _| Cell::new(ownership.id)),
        Column::new("controller", |ownership, _| Cell::new(ownership.controller_id.uuid())),
        Column::new("address", |ownership, _| Cell::new(&ownership.address)),
        Column::new("since", |ownership, view| view.age(ownership.since)),
        Column::number("since_generation", |ownership, _| Cell::new(ownership.since_generation)),
        Column::number("generation", |ownership, _| Cell::new(ownership.generation)),
    ];
}
