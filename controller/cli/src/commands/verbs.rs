//! What all nouns do alike: list, show, change and wait, delete.

use std::time::Instant;

use reqwest::Method;
use serde_json::{Value, json};
use shared::api::job::{Job, JobRef};
use shared::api::vm::PlacementReport;
use shared::id::ResourceId as _;
use uuid::Uuid;

use crate::cli::{ChangeArgs, Format, ListArgs};
use crate::client::Call;
use crate::client::list::Query;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::table::{Cell, Head, fields, table};
use crate::output::view::{Resource, View, details, parse, rows};
use crate::output::{colours, line, name_of, note, plain, value};
use crate::resolve::{self, Noun};
use crate::wait;

/// Lists a noun.
pub async fn list<T: Resource>(ctx: &Ctx, args: &ListArgs) -> Result<()> {
    let path = format!("/{}", T::NOUN.path);
    if args.count {
        return line(&ctx.client.count(&path, args.filter.as_deref()).await?.to_string());
    }
    let limit = (!args.all).then_some(args.limit as usize);
    let query = Query { q: args.filter.clone(), sort: args.sort.clone(), limit, ..Query::default() };
    let listing = ctx.client.list(&path, &query).await?;
    print_list::<T>(ctx, listing.items, args).await?;
    if listing.more {
        note(&format!("Only the first {} are shown; all of them: --all", args.limit));
    }
    Ok(())
}

/// Writes items as a table, or as the user wants it.
pub async fn print_list<T: Resource>(ctx: &Ctx, items: Vec<Value>, args: &ListArgs) -> Result<()> {
    match ctx.format {
        Format::Table if items.is_empty() => {
            let which = if args.filter.is_some() { " that match" } else { "" };
            note(&format!("There are no {}s{which}.", T::NOUN.one));
            Ok(())
        }
        Format::Table => {
            let typed: Vec<T> = items.iter().map(parse).collect::<Result<_>>()?;
            let view = View::of(&ctx.client, &typed, args.full).await;
            let pairs: Vec<(Value, T)> = items.into_iter().zip(typed).collect();
            let (heads, rows) = rows(&pairs, &args.columns, &view);
            line(&table(&heads, &rows, colours()))
        }
        Format::Name => items.iter().try_for_each(|item| line(&name_of(item))),
        format => value(&Value::Array(items), format),
    }
}

/// Shows one resource.
pub async fn show<T: Resource>(ctx: &Ctx, given: &str) -> Result<()> {
    let raw = resolve::fetch(&ctx.client, T::NOUN, given).await?;
    print_one::<T>(ctx, &raw).await
}

/// Writes one resource.
pub async fn print_one<T: Resource>(ctx: &Ctx, raw: &Value) -> Result<()> {
    match ctx.format {
        Format::Table => {
            let item = parse::<T>(raw)?;
            let items = [item];
            let view = View::of(&ctx.client, &items, true).await;
            line(&fields(&details(raw, &items[0], &view), colours()))
        }
        Format::Name => line(&name_of(raw)),
        format => value(raw, format),
    }
}

/// A request that changes something.
#[derive(Clone, Debug)]
pub struct Change {
    /// The noun.
    pub noun: Noun,
    /// What the user calls the thing.
    pub name: String,
    /// What was done when it is done, such as `started`.
    pub done: &'static str,
    /// Method of the request.
    pub method: Method,
    /// Path of the request.
    pub path: String,
    /// Body of the request.
    pub body: Option<Value>,
    /// The thing.
    pub id: Uuid,
}

impl Change {
    /// `POST /v1/<noun>` with an id of the client's choice in the body.
    pub fn create(noun: Noun, name: &str, id: Uuid, body: Value) -> Self {
        let path = format!("/{}", noun.path);
        Self { noun, name: name.into(), done: "created", method: Method::POST, path, body: Some(body), id }
    }

    /// `POST /v1/<noun>/<id>/<action>`.
    pub fn action(noun: Noun, name: &str, id: Uuid, action: &str, done: &'static str) -> Self {
        let path = format!("{}/{action}", noun.path_of(id));
        Self { noun, name: name.into(), done, method: Method::POST, path, body: None, id }
    }

    /// `PATCH /v1/<noun>/<id>`.
    pub fn patch(noun: Noun, name: &str, id: Uuid, body: Value, done: &'static str) -> Self {
        let path = noun.path_of(id);
        Self { noun, name: name.into(), done, method: Method::PATCH, path, body: Some(body), id }
    }

    /// `DELETE /v1/<noun>/<id>`.
    pub fn delete(noun: Noun, name: &str, id: Uuid, done: &'static str) -> Self {
        Self { noun, name: name.into(), done, method: Method::DELETE, path: noun.path_of(id), body: None, id }
    }

    /// The same with a body.
    pub fn with_body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// The thing in words.
    pub fn label(&self) -> String {
        format!("{} {}", self.noun.one, self.name)
    }
}

/// What a server answers to a change.
#[derive(Debug)]
pub enum Answer {
    /// It is done; the resource, or nothing.
    Done(Value),
    /// It is accepted.
    Accepted(JobRef),
    /// It is accepted and has ended already.
    Ended(Box<Job>),
    /// What would have happened.
    DryRun(Value),
}

impl Answer {
    /// Reads an answer by its shape.
    pub fn read(body: Value) -> Result<Self> {
        if body.get("job_id").is_some() {
            let job = serde_json::from_value(body)
                .map_err(|e| CliError::Protocol(format!("the server's answer cannot be read: {e}")))?;
            return Ok(Self::Accepted(job));
        }
        if body.get("steps").is_some() && body.get("request_id").is_some() {
            return wait::read(body).map(|job| Self::Ended(Box::new(job)));
        }
        Ok(Self::Done(body))
    }
}

/// Sends a change. The server may take a second to do it at once; most work needs no more.
pub async fn submit(ctx: &Ctx, change: &Change, args: &ChangeArgs) -> Result<Answer> {
    let mut call = Call::new(change.method.clone(), &change.path);
    call.body.clone_from(&change.body);
    if args.dry_run {
        let body = ctx.client.send(call.query("dry_run", true)).await?.body;
        return Ok(Answer::DryRun(body));
    }
    if !args.no_wait {
        call = call.wait(1);
    }
    let reply = tokio::select! {
        reply = ctx.client.send(call) => reply?,
        _ = tokio::signal::ctrl_c() => return Err(CliError::Interrupted { job: None }),
    };
    Answer::read(reply.body)
}

/// Waits for what was accepted, when the user wants to wait, and tells of it. Gives what a program
/// that reads the output gets.
pub async fn settle(ctx: &Ctx, change: &Change, args: &ChangeArgs, answer: Answer, since: Instant) -> Result<Value> {
    let label = change.label();
    let job = match answer {
        Answer::DryRun(report) => return dry_run(ctx, &label, report).await,
        Answer::Done(body) => {
            return told(ctx, change, if body.is_null() { json!({"id": change.id}) } else { body }, since).await;
        }
        Answer::Ended(job) => *job,
        Answer::Accepted(job) if args.no_wait => return accepted(ctx, &label, &job),
        Answer::Accepted(job) => wait::until_final(&ctx.client, job.job_id, &label, since, args.timeout).await?,
    };
    if let Some(failure) = wait::failure(&job, &label) {
        return Err(failure);
    }
    let path = change.noun.path_of(change.id);
    let resource = match ctx.client.send(Call::get(&path)).await {
        Ok(reply) => reply.body,
        // Gone, as it should be; the job is what is left to show.
        Err(error) if error.exit_code() == crate::error::exit::NOT_FOUND => json!(job),
        Err(error) => return Err(error),
    };
    told(ctx, change, resource, since).await
}

async fn told(ctx: &Ctx, change: &Change, resource: Value, since: Instant) -> Result<Value> {
    if ctx.for_people() {
        let took = since.elapsed();
        let took = if took.as_millis() < 1000 { String::new() } else { format!("  ({:.1} s)", took.as_secs_f64()) };
        let about = about(ctx, &resource).await;
        line(&format!("{} {}{about}{took}", plain(&change.label()), change.done))?;
    }
    Ok(resource)
}

/// Where and how a resource is now, in a few words.
async fn about(ctx: &Ctx, resource: &Value) -> String {
    let text = |key: &str| resource.get(key).and_then(Value::as_str).map(plain);
    if resource.get("steps").is_some() {
        return String::new();
    }
    let mut words = Vec::new();
    if let Some(state) = text("state").or_else(|| text("admin_state")) {
        let host = text("host_id").and_then(|id| id.parse::<Uuid>().ok());
        let place = match host {
            Some(id) => format!(" on {}", host_name(ctx, id).await),
            None => String::new(),
        };
        words.push(format!("{state}{place}"));
    }
    let nics = resource.get("nics").and_then(Value::as_array).into_iter().flatten();
    words.extend(nics.filter_map(|nic| nic.get("ip").and_then(Value::as_str).map(plain)));
    if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) }
}

async fn host_name(ctx: &Ctx, id: Uuid) -> String {
    match ctx.client.send(Call::get(&Noun::HOST.path_of(id))).await {
        Ok(reply) => name_of(&reply.body),
        Err(_) => id.to_string(),
    }
}

fn accepted(ctx: &Ctx, label: &str, job: &JobRef) -> Result<Value> {
    match ctx.format {
        Format::Table => {
            line(&format!("{}: accepted as job {}", plain(label), job.job_id))?;
            note(&format!("kring job wait {id}    waits for it\nkring job cancel {id}  cancels it", id = job.job_id));
        }
        Format::Name => line(&job.job_id.to_string())?,
        Format::Json | Format::Yaml => {}
    }
    Ok(json!(job))
}

async fn dry_run(ctx: &Ctx, label: &str, report: Value) -> Result<Value> {
    if !ctx.for_people() {
        return Ok(report);
    }
    note(&format!("{}: nothing was changed.", plain(label)));
    match serde_json::from_value::<PlacementReport>(report.clone()) {
        Ok(placement) if report.get("filters").is_some() => print_placement(ctx, &placement).await?,
        _ if report.is_null() => {}
        _ => value(&report, Format::Yaml)?,
    }
    Ok(report)
}

/// Says which host a placement would take, and why each of the others not.
async fn print_placement(ctx: &Ctx, report: &PlacementReport) -> Result<()> {
    let dropped = |noun_hosts: &[shared::id::HostId]| noun_hosts.iter().map(|h| h.uuid()).collect::<Vec<_>>();
    let mut rows = Vec::new();
    for filter in &report.filters {
        let mut names = Vec::new();
        for id in dropped(&filter.hosts) {
            names.push(host_name(ctx, id).await);
        }
        rows.push(vec![
            Cell::new(&filter.filter),
            Cell::new(filter.dropped),
            Cell::new(names.join(", ")),
            Cell::new(if filter.dropped == 0 { "" } else { &filter.reason }),
        ]);
    }
    let head = |text: &str, right: bool| Head { text: text.into(), right };
    let heads = [head("filter", false), head("dropped", true), head("hosts", false), head("reason", false)];
    if !rows.is_empty() {
        line(&table(&heads, &rows, colours()))?;
    }
    match report.chosen {
        Some(id) => line(&format!("of {} hosts it would go to {}", report.considered, host_name(ctx, id.uuid()).await)),
        None => line(&format!("none of {} hosts can take it", report.considered)),
    }
}

/// Sends one change, waits and tells.
pub async fn change(ctx: &Ctx, change: Change, args: &ChangeArgs) -> Result<()> {
    let since = Instant::now();
    let answer = submit(ctx, &change, args).await?;
    let result = settle(ctx, &change, args, answer, since).await?;
    print_result(ctx, &result, args)
}

fn print_result(ctx: &Ctx, result: &Value, args: &ChangeArgs) -> Result<()> {
    match ctx.format {
        Format::Json | Format::Yaml => value(result, ctx.format),
        Format::Name if !args.no_wait && !args.dry_run => line(&name_of(result)),
        Format::Name | Format::Table => Ok(()),
    }
}

/// Does the same to several things: all are sent first, then each is waited for. One that fails does
/// not keep the others from being done.
pub async fn change_each(
    ctx: &Ctx,
    noun: Noun,
    names: &[String],
    args: &ChangeArgs,
    make: impl Fn(&str, Uuid) -> Change,
) -> Result<()> {
    if let [name] = names {
        let id = resolve::id(&ctx.client, noun, name).await?;
        return change(ctx, make(name, id), args).await;
    }
    let since = Instant::now();
    let mut sent = Vec::new();
    for name in names {
        let one = async {
            let change = make(name, resolve::id(&ctx.client, noun, name).await?);
            let no_wait = ChangeArgs { no_wait: true, ..args.clone() };
            let answer = submit(ctx, &change, &no_wait).await?;
            Ok::<_, CliError>((change, answer))
        };
        sent.push(one.await);
    }
    let mut results = Vec::new();
    let mut code = 0;
    for one in sent {
        let result = match one {
            Ok((change, answer)) => settle(ctx, &change, args, answer, since).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(result) => results.push(result),
            Err(error @ (CliError::Interrupted { .. } | CliError::PipeClosed)) => return Err(error),
            Err(error) => {
                note(&error.render(ctx.format));
                code = if code == 0 { error.exit_code() } else { code };
            }
        }
    }
    match ctx.format {
        Format::Json | Format::Yaml => value(&Value::Array(results), ctx.format)?,
        _ => results.iter().try_for_each(|result| print_result(ctx, result, args))?,
    }
    if code == 0 { Ok(()) } else { Err(CliError::Several { code }) }
}

/// Creates a resource that needs no job.
pub async fn create_direct<T: Resource>(ctx: &Ctx, name: &str, id: Uuid, body: Value) -> Result<()> {
    let created = Change::create(T::NOUN, name, id, body);
    change(ctx, created, &no_job()).await
}

/// Deletes resources that need no job.
pub async fn delete_direct(ctx: &Ctx, noun: Noun, names: &[String]) -> Result<()> {
    change_each(ctx, noun, names, &no_job(), |name, id| Change::delete(noun, name, id, "deleted")).await
}

/// For what is done at once. Should a server make a job of it after all, the job is waited for.
pub fn no_job() -> ChangeArgs {
    ChangeArgs { wait: true, no_wait: false, timeout: std::time::Duration::from_secs(3600), dry_run: false }
}

/// A request body as JSON.
pub fn body(request: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(request).map_err(|e| CliError::Usage(format!("the request cannot be written: {e}")))
}
