//! `kring event`: what happened, and what happens now.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;
use shared::api::event::Event;

use super::verbs;
use crate::cli::{Format, ListArgs};
use crate::client::list::Query;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::table::Cell;
use crate::output::view::{Column, Resource};
use crate::output::{line, note, plain};
use crate::resolve::Noun;

/// The pause before a cut stream is opened again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often in a row a stream is opened in vain before it is given up.
const TRIES: u32 = 20;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List past events, the newest first
    #[command(
        after_help = "Examples:\n  kring event list --limit 20\n  kring event list -q 'path like \"/vm/%\"' --sort cursor"
    )]
    List(ListArgs),
    /// Show events as they happen, until Ctrl-C; goes on by itself when the connection is lost
    Watch(Watch),
}

/// `kring event watch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kring event watch
  kring event watch --path /vm/state/changed -o json
  kring event watch --after 0   (from the very beginning)
  kring event watch --resource 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11 --limit 1")]
pub struct Watch {
    /// Begin after the event with this cursor, instead of now
    #[arg(long, value_name = "CURSOR")]
    after: Option<i64>,
    /// Only events whose path begins so
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Only events of the resource with this id
    #[arg(long, value_name = "ID")]
    resource: Option<uuid::Uuid>,
    /// Stop after so many events
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::List(mut args) => {
            args.sort.get_or_insert_with(|| "-cursor".into());
            verbs::list::<Event>(ctx, &args).await
        }
        Command::Watch(watch) => tokio::select! {
            result = follow(ctx, &watch) => result,
            _ = tokio::signal::ctrl_c() => Ok(()),
        },
    }
}

async fn follow(ctx: &Ctx, watch: &Watch) -> Result<()> {
    let mut after = match watch.after {
        Some(cursor) => Some(cursor),
        None => newest(ctx).await?,
    };
    let mut left = watch.limit.unwrap_or(u64::MAX);
    let mut failures = 0;
    while left > 0 {
        let query: Vec<(&str, String)> = after.map(|cursor| ("after", cursor.to_string())).into_iter().collect();
        match ctx.client.open_stream("/events", &query).await {
            Ok(mut stream) => {
                while let Some(data) = stream.next().await {
                    failures = 0;
                    let raw: Value = serde_json::from_str(&data)
                        .map_err(|_| CliError::Protocol("the server sent an event that is not JSON".into()))?;
                    let event: Event = serde_json::from_value(raw.clone())
                        .map_err(|e| CliError::Protocol(format!("the server's event cannot be read: {e}")))?;
                    // What was seen before the connection was lost may come again.
                    if after.is_some_and(|cursor| event.cursor <= cursor) {
                        continue;
                    }
                    after = Some(event.cursor);
                    if wanted(watch, &event) {
                        print(ctx, &raw, &event)?;
                        left -= 1;
                        if left == 0 {
                            return Ok(());
                        }
                    }
                }
            }
            Err(error @ CliError::Unreachable { .. }) if failures >= TRIES => return Err(error),
            Err(CliError::Unreachable { .. }) => {}
            Err(CliError::Problem(problem)) if problem.status >= 500 || problem.status == 429 => {
                if failures >= TRIES {
                    return Err(CliError::Problem(problem));
                }
            }
            Err(error) => return Err(error),
        }
        if failures == 0 {
            let from = after.map(|cursor| format!(" after {cursor}")).unwrap_or_default();
            note(&format!("The connection was lost; going on{from}."));
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE);
        failures += 1;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// The cursor of the newest event: from there a lost connection can go on, though nothing came yet.
async fn newest(ctx: &Ctx) -> Result<Option<i64>> {
    let query = Query { sort: Some("-cursor".into()), limit: Some(1), ..Query::default() };
    let listing = ctx.client.list("/events", &query).await?;
    Ok(listing.items.first().and_then(|event| event.get("cursor")?.as_i64()))
}

fn wanted(watch: &Watch, event: &Event) -> bool {
    watch.path.as_ref().is_none_or(|path| event.path.starts_with(path.as_str()))
        && watch.resource.is_none_or(|id| event.resource_id == id)
}

fn print(ctx: &Ctx, raw: &Value, event: &Event) -> Result<()> {
    match ctx.format {
        // One event on a line, so that a program can read them as they come.
        Format::Json => line(&raw.to_string()),
        Format::Yaml => {
            line("---")?;
            crate::output::value(raw, Format::Yaml)
        }
        Format::Name => line(&event.path),
        Format::Table => line(&format!(
            "{}  {:<28}  {} {}  {}",
            event.at,
            plain(&event.path),
            plain(&event.resource_kind),
            event.resource_id,
            content(event)
        )),
    }
}

/// The content in a line: `key=value` of what is not a structure of its own.
fn content(event: &Event) -> String {
    let Some(object) = event.content.as_object() else { return String::new() };
    let simple = object.iter().filter_map(|(key, value)| match value {
        Value::String(text) => Some(format!("{key}={text}")),
        Value::Number(_) | Value::Bool(_) => Some(format!("{key}={value}")),
        _ => None,
    });
    plain(&simple.collect::<Vec<_>>().join(" ")).replace('\n', " ")
}

impl Resource for Event {
    const NOUN: Noun = Noun::EVENT;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::number("cursor", |event, _| Cell::new(event.cursor)),
        Column::new("at", |event, _| Cell::new(event.at)),
        Column::new("path", |event, _| Cell::new(&event.path)),
        Column::new("resource", |event, view| {
            Cell::new(format!("{} {}", event.resource_kind, view.id(event.resource_id).text))
        }),
        Column::new("content", |event, _| Cell::new(content(event))),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use shared::id::{ResourceId as _, VmId};
    use shared::time::Timestamp;

    #[test]
    fn events_are_chosen_by_path_and_resource() {
        let id = VmId::new().uuid();
        let event = Event {
            cursor: 7,
            path: "/vm/state/changed".into(),
            resource_kind: "vm".into(),
            resource_id: id,
            content: json!({"from": "stopped", "to": "running", "deep": {"x": 1}}),
            at: Timestamp(0),
        };
        let watch =
            |path: Option<&str>, resource| Watch { after: None, path: path.map(str::to_string), resource, limit: None };
        assert!(wanted(&watch(Some("/vm/"), Some(id)), &event));
        assert!(!wanted(&watch(Some("/host/"), None), &event));
        assert!(!wanted(&watch(None, Some(VmId::new().uuid())), &event));
        assert_eq!(content(&event), "from=stopped to=running");
    }
}
