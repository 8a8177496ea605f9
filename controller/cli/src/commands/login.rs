//! `kring login` and `kring context`: the saved controllers.

use std::io::{IsTerminal as _, Read as _};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::{Format, Global};
use crate::client::{Call, Client};
use crate::config::{self, Context, Env, File};
use crate::error::{CliError, Result};
use crate::output::table::{Cell, Head, table};
use crate::output::{colours, line, note, value};

/// `kring login`.
#[derive(Debug, Args)]
#[command(after_help = "\
The file is ~/.config/kring/config.toml, readable by you alone.

Examples:
  kring login --url https://10.0.0.1:8443 --ca ca.pem --token-stdin < token
  kring login --url https://c1:8443,https://c2:8443 --ca ca.pem --token-stdin --name production
  kring --context production status")]
pub struct Login {
    /// Address of the controller; several with commas: the next one is tried when one does not answer
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',')]
    url: Vec<String>,
    /// Read the token from standard input, where nobody sees it (or give --token)
    #[arg(long, conflicts_with = "token")]
    token_stdin: bool,
    /// What to call it
    #[arg(long, default_value = "default")]
    name: String,
    /// Save it without asking the controller whether the token is good
    #[arg(long)]
    no_check: bool,
}

/// `kring context`.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List the saved controllers
    #[command(after_help = "Examples:\n  kring context list")]
    List,
    /// Take this one from now on
    #[command(after_help = "Examples:\n  kring context use production")]
    Use {
        /// Its name
        name: String,
    },
    /// Forget this one and its token
    #[command(after_help = "Examples:\n  kring context remove production")]
    Remove {
        /// Its name
        name: String,
    },
}

/// Checks and saves a controller's address and token.
pub async fn run(global: &Global, args: Login) -> Result<()> {
    let env = Env::read();
    let ca = global.connection.ca.clone().or_else(|| env.ca.clone());
    let context = Context {
        urls: args.url.clone(),
        ca: None,
        // Kept inside, so that the file may be moved away.
        ca_pem: ca.as_deref().map(config::read_ca).transpose()?,
        token: Some(token(global, &env, args.token_stdin)?),
    };
    let target = config::Target {
        urls: config::parse_urls(&context.urls)?,
        ca_pem: context.ca_pem.clone(),
        token: context.token.clone(),
        context: None,
    };
    let client = Client::new(&target, global.verbose)?;
    if !args.no_check {
        client.send(Call::get("/vms").query("limit", 1)).await?;
    }
    let path = config::user_file(&global.connection, &env)?;
    let mut file = config::load(&path)?;
    file.contexts.insert(args.name.clone(), context);
    file.current = Some(args.name.clone());
    config::save(&path, &file)?;
    match global.output {
        Format::Table => line(&format!("Logged in to {} (context {} in {})", client.url(), args.name, path.display())),
        Format::Name => line(&args.name),
        format => value(&json!({"context": args.name, "url": client.url().as_str(), "file": path}), format),
    }
}

fn token(global: &Global, env: &Env, from_stdin: bool) -> Result<String> {
    let given = if from_stdin {
        if std::io::stdin().is_terminal() {
            note("Paste the token, then press Enter and Ctrl-D:");
        }
        let mut text = String::new();
        // A token is short; whatever is longer is something else.
        std::io::stdin().lock().take(64 * 1024).read_to_string(&mut text)?;
        Some(text)
    } else {
        global.connection.token.clone().or_else(|| env.token.clone())
    };
    match given.map(|text| text.trim().to_string()).filter(|text| !text.is_empty()) {
        Some(token) => Ok(token),
        None => Err(CliError::Usage("no token was given: use --token-stdin, --token or KRING_TOKEN".into())),
    }
}

/// Lists, chooses or forgets saved controllers.
pub fn contexts(global: &Global, command: ContextCommand) -> Result<()> {
    let path = config::user_file(&global.connection, &Env::read())?;
    let mut file = config::load(&path)?;
    match command {
        ContextCommand::List => list(global.output, &file),
        ContextCommand::Use { name } => {
            known(&file, &name)?;
            file.current = Some(name.clone());
            config::save(&path, &file)?;
            line(&format!("context {name} is used from now on"))
        }
        ContextCommand::Remove { name } => {
            known(&file, &name)?;
            file.contexts.remove(&name);
            file.current = file.current.filter(|current| *current != name);
            config::save(&path, &file)?;
            line(&format!("context {name} is forgotten"))
        }
    }
}

fn known(file: &File, name: &str) -> Result<()> {
    match file.contexts.contains_key(name) {
        true => Ok(()),
        false => Err(CliError::NoSuchName { noun: "context", command: "context", name: name.to_string() }),
    }
}

fn list(format: Format, file: &File) -> Result<()> {
    let current = |name: &String| file.current.as_ref() == Some(name);
    match format {
        Format::Name => file.contexts.keys().try_for_each(|name| line(name)),
        Format::Table if file.contexts.is_empty() => {
            note("There are no contexts. Log in: kring login --url URL --ca ca.pem --token-stdin");
            Ok(())
        }
        Format::Table => {
            let head = |text: &str| Head { text: text.into(), right: false };
            let row = |(name, context): (&String, &Context)| {
                let mark = if current(name) { "yes" } else { "" };
                vec![Cell::new(name), Cell::new(mark), Cell::new(context.urls.join(", "))]
            };
            let rows: Vec<_> = file.contexts.iter().map(row).collect();
            line(&table(&[head("name"), head("current"), head("urls")], &rows, colours()))
        }
        // Without the tokens: a list is made to be shown around.
        format => {
            let items = file.contexts.iter().map(|(n, c)| json!({"name": n, "current": current(n), "urls": c.urls}));
            value(&Value::Array(items.collect()), format)
        }
    }
}
