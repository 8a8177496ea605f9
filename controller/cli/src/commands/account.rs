//! `kring account`: owners of resources.

use clap::Subcommand;
use shared::api::account::{Account, CreateAccount};
use shared::id::{AccountId, ResourceId as _};
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
    /// Make an account
    #[command(after_help = "Examples:\n  kring account create team-a && kring token create laptop --account team-a")]
    Create {
        /// Its name
        name: Name,
    },
    /// List accounts
    #[command(after_help = "Examples:\n  kring account list")]
    List(ListArgs),
    /// Show all about an account
    #[command(after_help = "Examples:\n  kring account show team-a")]
    Show {
        /// Name or id
        account: String,
    },
    /// Delete accounts that own nothing
    #[command(after_help = "Examples:\n  kring account delete team-a")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "ACCOUNT")]
        accounts: Vec<String>,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create { name } => {
            let id = AccountId::new();
            let text = name.to_string();
            verbs::create_direct::<Account>(ctx, &text, id.uuid(), body(&CreateAccount { id: Some(id), name })?).await
        }
        Command::List(args) => verbs::list::<Account>(ctx, &args).await,
        Command::Show { account } => verbs::show::<Account>(ctx, &account).await,
        Command::Delete { accounts } => verbs::delete_direct(ctx, Noun::ACCOUNT, &accounts).await,
    }
}

impl Resource for Account {
    const NOUN: Noun = Noun::ACCOUNT;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |account, _| Cell::new(&account.name)),
        Column::new("kind", |account, _| Cell::new(format!("{:?}", account.kind).to_lowercase())),
        Column::new("age", |account, view| view.age(account.created_at)),
        Column::new("id", |account, view| view.id(account.id.uuid())),
    ];
}
