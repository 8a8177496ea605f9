//! `kring token`: keys that programs and people use.

use std::time::Duration;

use clap::Subcommand;
use reqwest::Method;
use shared::api::account::{CreateToken, NewToken, Token};
use shared::id::{AccountId, ResourceId as _};
use shared::name::Name;
use shared::time::Timestamp;
use uuid::Uuid;

use super::verbs::{self, body};
use crate::cli::{Format, ListArgs};
use crate::client::Call;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::input;
use crate::output::table::Cell;
use crate::output::view::{Column, Resource};
use crate::output::{line, note, value};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token; its secret is shown this one time
    #[command(
        after_help = "Examples:\n  kring token create ci --expires 30d\n  kring token create laptop --account team-a -o json"
    )]
    Create {
        /// What it is for
        name: Name,
        /// Account that it acts for: name or id; your own when not given
        #[arg(long)]
        account: Option<String>,
        /// How long it works; for ever when not given
        #[arg(long, value_name = "DURATION", value_parser = input::duration)]
        expires: Option<Duration>,
    },
    /// List tokens
    #[command(after_help = "Examples:\n  kring token list")]
    List(ListArgs),
    /// Show all about a token but its secret
    #[command(after_help = "Examples:\n  kring token show ci")]
    Show {
        /// Name or id
        #[arg(value_name = "TOKEN")]
        which: String,
    },
    /// Delete tokens: they stop working
    #[command(after_help = "Examples:\n  kring token delete ci")]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "TOKEN")]
        which: Vec<String>,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create { name, account, expires } => make(ctx, name, account.as_deref(), expires).await,
        Command::List(args) => verbs::list::<Token>(ctx, &args).await,
        Command::Show { which } => verbs::show::<Token>(ctx, &which).await,
        Command::Delete { which } => verbs::delete_direct(ctx, Noun::TOKEN, &which).await,
    }
}

async fn make(ctx: &Ctx, name: Name, account: Option<&str>, expires: Option<Duration>) -> Result<()> {
    let account_id = match account {
        Some(given) => Some(AccountId::from_uuid(resolve::id(&ctx.client, Noun::ACCOUNT, given).await?)),
        None => None,
    };
    let expires_at = expires.map(|d| Timestamp::now().plus_ms(i64::try_from(d.as_millis()).unwrap_or(i64::MAX)));
    let request = body(&CreateToken { name, account_id, expires_at })?;
    let reply = ctx.client.send(Call::new(Method::POST, "/tokens").body(request)).await?;
    match ctx.format {
        Format::Json | Format::Yaml => value(&reply.body, ctx.format),
        Format::Table | Format::Name => {
            let token: NewToken = serde_json::from_value(reply.body)
                .map_err(|e| CliError::Protocol(format!("the server's token cannot be read: {e}")))?;
            note(&format!("The secret of token {}; it is not shown again:", token.token.name));
            line(&token.secret)
        }
    }
}

impl Resource for Token {
    const NOUN: Noun = Noun::TOKEN;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |token, _| Cell::new(&token.name)),
        Column::new("account", |token, view| view.name(token.account_id)),
        Column::new("expires", |token, _| {
            Cell::new(token.expires_at.map_or_else(|| "never".to_string(), |at| at.to_string()))
        }),
        Column::new("age", |token, view| view.age(token.created_at)),
        Column::new("id", |token, view| view.id(token.id.uuid())),
    ];

    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        vec![(Noun::ACCOUNT, self.account_id.uuid())]
    }
}
