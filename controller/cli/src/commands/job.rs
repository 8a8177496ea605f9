//! `kring job`: accepted work.

use std::time::{Duration, Instant};

use clap::Subcommand;
use shared::api::job::Job;
use shared::id::{JobId, ResourceId as _};

use super::verbs::{self, Change};
use crate::cli::{ChangeArgs, Format, ListArgs};
use crate::client::Call;
use crate::context::Ctx;
use crate::error::Result;
use crate::input;
use crate::output::table::{Cell, Tone};
use crate::output::view::{Column, Resource, View, span};
use crate::output::{line, value};
use crate::resolve::{self, Noun};
use crate::wait;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List jobs, the newest first
    #[command(
        after_help = "Examples:\n  kring job list\n  kring job list -q 'state = failed'\n  kring job list -q 'resource.id = \"...\"'"
    )]
    List(ListArgs),
    /// Show a job: its steps, why it failed, what was undone
    #[command(after_help = "Examples:\n  kring job show 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11")]
    Show {
        /// Its id
        job: String,
    },
    /// Wait until a job ends; its outcome is the exit code
    #[command(after_help = "Examples:\n  kring job wait 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11 --timeout 5m")]
    Wait {
        /// Its id
        job: String,
        /// Wait no longer than this
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = input::duration)]
        timeout: Duration,
    },
    /// Cancel a job: what it has done is undone
    #[command(after_help = "Examples:\n  kring job cancel 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11")]
    Cancel {
        /// Its id
        job: String,
        /// Do not wait until all is undone
        #[arg(long)]
        no_wait: bool,
        /// Wait no longer than this
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = input::duration)]
        timeout: Duration,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::List(mut args) => {
            args.sort.get_or_insert_with(|| "-id".into());
            verbs::list::<Job>(ctx, &args).await
        }
        Command::Show { job } => {
            let id = id_of(&job)?;
            let raw = ctx.client.send(Call::get(&Noun::JOB.path_of(id.uuid()))).await?.body;
            verbs::print_one::<Job>(ctx, &raw).await
        }
        Command::Wait { job, timeout } => {
            let id = id_of(&job)?;
            let job = wait::until_final(&ctx.client, id, "job", Instant::now(), timeout).await?;
            ended(ctx, &job)
        }
        Command::Cancel { job, no_wait, timeout } => cancel(ctx, &job, no_wait, timeout).await,
    }
}

fn id_of(given: &str) -> Result<JobId> {
    resolve::whole_id(given, "kring job list").map(JobId::from_uuid)
}

fn label(job: &Job) -> String {
    format!("{} of {} {}", job.kind, job.resource.kind, job.resource.id)
}

fn ended(ctx: &Ctx, job: &Job) -> Result<()> {
    if let Some(failure) = wait::failure(job, &label(job)) {
        return Err(failure);
    }
    print(ctx, job, &format!("{} {}", label(job), job.state))
}

fn print(ctx: &Ctx, job: &Job, text: &str) -> Result<()> {
    match ctx.format {
        Format::Table => line(text),
        Format::Name => line(&job.id.to_string()),
        format => value(&verbs::body(job)?, format),
    }
}

async fn cancel(ctx: &Ctx, given: &str, no_wait: bool, timeout: Duration) -> Result<()> {
    let id = id_of(given)?;
    let change = Change::action(Noun::JOB, given, id.uuid(), "cancel", "cancelled");
    let args = ChangeArgs { wait: !no_wait, no_wait: true, timeout, dry_run: false };
    verbs::submit(ctx, &change, &args).await?;
    if no_wait {
        return match ctx.for_people() {
            true => line(&format!("job {id} will be cancelled")),
            false => Ok(()),
        };
    }
    let job = wait::until_final(&ctx.client, id, &format!("job {id}"), Instant::now(), timeout).await?;
    // It may have been too late to cancel it; then how it ended is the news.
    match job.state {
        shared::api::job::JobState::Cancelled => print(ctx, &job, &format!("{} cancelled", label(&job))),
        _ => ended(ctx, &job),
    }
}

impl Resource for Job {
    const NOUN: Noun = Noun::JOB;
    const COLUMNS: &'static [Column<Self>] = &[
        // A job has no name, so its whole id is what it is called by.
        Column::new("id", |job, _| Cell::new(job.id)),
        Column::new("kind", |job, _| Cell::new(&job.kind)),
        Column::new("state", |job, _| Cell::state(job.state.as_str())),
        Column::number("done", |job, _| Cell::new(format!("{} %", job.progress))),
        Column::new("step", |job, _| Cell::new(job.step.as_deref().unwrap_or_default())),
        Column::new("resource", |job, view| {
            Cell::new(format!("{} {}", job.resource.kind, view.id(job.resource.id).text))
        }),
        Column::wide("account", |job, view| view.name(job.account_id)),
        Column::wide("request", |job, _| Cell::new(&job.request_id)),
        Column::number("took", |job, view| {
            let ms = job.started_at.map(|at| job.finished_at.unwrap_or(view.now).ms() - at.ms());
            Cell::new(ms.map(seconds).unwrap_or_default())
        }),
        Column::new("age", |job, view| view.age(job.created_at)),
    ];

    fn refers_to(&self) -> Vec<(Noun, uuid::Uuid)> {
        vec![(Noun::ACCOUNT, self.account_id.uuid())]
    }

    fn details(&self, _view: &View) -> Vec<(String, Vec<Cell>)> {
        let list = |label: &str, items: &[String]| (label.to_string(), items.iter().map(Cell::new).collect::<Vec<_>>());
        let mut pairs = vec![list("steps", &self.steps)];
        if let Some(error) = &self.error {
            pairs.push(("error".into(), vec![Cell::new(&error.message).tone(Tone::Bad)]));
            pairs.push(list("because", &error.causes));
            pairs.push(("code".into(), vec![Cell::new(error.code)]));
            pairs.extend(error.detail.as_ref().map(|detail| ("detail".to_string(), vec![Cell::new(detail)])));
        }
        pairs.push(list("undone", &self.rolled_back));
        pairs.push(list("still to undo", &self.cleanup_owed));
        pairs.push(("created".into(), vec![Cell::new(self.created_at)]));
        if !self.state.is_final() {
            pairs.push(("given up at".into(), vec![Cell::new(self.deadline_at)]));
        }
        pairs.retain(|(_, cells)| !cells.is_empty());
        pairs
    }
}

/// A short time to a tenth, a long one as ages are.
fn seconds(ms: i64) -> String {
    if ms < 100_000 { format!("{}.{} s", ms.max(0) / 1000, ms.max(0) % 1000 / 100) } else { span(ms) }
}
