//! `kring service`: the parts of the controller and what they are doing.

use clap::Subcommand;
use shared::api::service::Service;

use super::verbs;
use crate::cli::ListArgs;
use crate::client::Call;
use crate::client::list::Query;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::table::{Cell, Tone};
use crate::output::view::{Column, Resource};
use crate::resolve::Noun;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List services with what they are doing
    #[command(after_help = "Examples:\n  kring service list\n  kring service list --full")]
    List {
        /// Columns of the table
        #[arg(long, value_name = "KEY,KEY", value_delimiter = ',')]
        columns: Vec<String>,
        /// All columns
        #[arg(long)]
        full: bool,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    let Command::List { columns, full } = command;
    let body = ctx.client.send(Call::get("/services")).await?.body;
    let items = match body.get("items").or(Some(&body)).and_then(|list| list.as_array()) {
        Some(items) => items.clone(),
        None => return Err(CliError::Protocol("the list of services has no items".into())),
    };
    // A longer list comes in pages.
    let items = match body.get("next_cursor").and_then(|c| c.as_str()) {
        Some(_) => ctx.client.list("/services", &Query::default()).await?.items,
        None => items,
    };
    verbs::print_list::<Service>(ctx, items, &ListArgs { columns, full, ..ListArgs::default() }).await
}

impl Resource for Service {
    const NOUN: Noun = Noun::SERVICE;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |service, _| Cell::new(&service.name)),
        Column::new("state", |service, _| match (service.disabled, service.started) {
            (true, _) => Cell::state("disabled"),
            (false, true) => Cell::state("started"),
            (false, false) => Cell::state("stopped"),
        }),
        Column::number("in_flight", |service, _| Cell::new(service.in_flight)),
        Column::number("queued", |service, _| Cell::new(service.queued)),
        Column::number("handled", |service, _| Cell::new(service.handled)),
        Column::number("failed", |service, _| {
            let tone = if service.failed == 0 { Tone::Faint } else { Tone::Bad };
            Cell::new(service.failed).tone(tone)
        }),
        Column::wide("messages", |service, _| Cell::new(service.messages.join(", "))),
    ];
}
