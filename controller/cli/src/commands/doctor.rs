//! `kring doctor`: what is not as it should be with controllers, hosts and storages, and what to do.

use std::collections::HashMap;

use clap::Args;
use serde_json::{Value, json};
use shared::api::controller::{Controller, ControllerState};
use shared::api::host::{Host, HostConnection};
use shared::api::storage::Storage;
use shared::id::{HostId, ResourceId as _};
use shared::units::Bytes;
use shared::wire::host::Grade;

use crate::client::Call;
use crate::client::list::Query;
use crate::context::Ctx;
use crate::error::{CliError, Result, exit};
use crate::output::table::{Cell, Head, Tone, table};
use crate::output::view::parse;
use crate::output::{colours, line, note, value};
use crate::resolve::Noun;

/// Part of a storage that should stay free: one in so many.
const FREE: u64 = 10;

/// `kring doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kring doctor\n  kring doctor --quick   (only what is known already)\n  kring-agent check      (on a host, also before it has joined)"
)]
pub struct Doctor {
    /// Do not have the hosts looked at again
    #[arg(long)]
    quick: bool,
}

/// Something that is wrong.
struct Trouble {
    grade: Grade,
    of: String,
    what: String,
    text: String,
}

impl Trouble {
    fn new(grade: Grade, of: String, what: &str, text: impl Into<String>) -> Self {
        Self { grade, of, what: what.to_string(), text: text.into() }
    }
}

/// Looks at everything and says what is wrong; an error when something does not work.
pub async fn run(ctx: &Ctx, args: Doctor) -> Result<()> {
    let mut troubles = Vec::new();
    let controllers = ctx.client.list("/controllers", &Query::default()).await?;
    let controllers: Vec<Controller> = controllers.items.iter().map(parse).collect::<Result<_>>()?;
    controllers.iter().for_each(|controller| of_controller(controller, &controllers, &mut troubles));
    let hosts = ctx.client.list("/hosts", &Query::default()).await?;
    let mut names = HashMap::new();
    for item in &hosts.items {
        let host: Host = parse(item)?;
        names.insert(host.id, host.name.to_string());
        let host = if args.quick { host } else { looked_at(ctx, host).await };
        of_host(&host, &controllers, &mut troubles);
    }
    if hosts.items.is_empty() {
        let text = "there are none: kring host join-token, and kring-agent join on a host";
        troubles.push(Trouble::new(Grade::Poor, "hosts".into(), "number", text));
    }
    let storages = ctx.client.list("/storages", &Query::default()).await?;
    for item in &storages.items {
        of_storage(&parse(item)?, &names, &mut troubles);
    }
    tell(ctx, &troubles, controllers.len(), hosts.items.len())
}

/// Has a host compared again, so that what it says is of now.
async fn looked_at(ctx: &Ctx, host: Host) -> Host {
    let path = format!("{}/reconnect", Noun::HOST.path_of(host.id.uuid()));
    match ctx.client.send(Call::new(reqwest::Method::POST, &path)).await {
        Ok(reply) => parse(&reply.body).unwrap_or(host),
        // Its connection tells why.
        Err(_) => host,
    }
}

fn of_controller(controller: &Controller, all: &[Controller], troubles: &mut Vec<Trouble>) {
    let of = || format!("controller {}", controller.address);
    if controller.state != ControllerState::Active {
        let (state, id) = (controller.state, controller.id);
        let text = format!("is {state}: `kring controller activate {id}` when that is not meant");
        troubles.push(Trouble::new(Grade::Poor, of(), "state", text));
    }
    for (what, health) in [("database", &controller.report.database), ("broker", &controller.report.bus)] {
        if !health.healthy && !matches!(health.kind.as_str(), "" | "none") {
            let why = health.error.as_deref().unwrap_or("no reason was told");
            let text = format!("{} cannot be used: {why}; see to it, the controller connects by itself", health.kind);
            troubles.push(Trouble::new(Grade::Bad, of(), what, text));
        }
    }
    if let Some(other) = all.iter().find(|other| other.version != controller.version) {
        let text = format!("is {}, another controller has {}: finish the upgrade", controller.version, other.version);
        troubles.push(Trouble::new(Grade::Poor, of(), "version", text));
    }
}

fn of_host(host: &Host, controllers: &[Controller], troubles: &mut Vec<Trouble>) {
    let of = || format!("host {}", host.name);
    if host.connection != HostConnection::Connected {
        let why = host.connection_reason.as_deref().unwrap_or("no reason is known");
        let text = format!(
            "{}: {why}; on the host: systemctl status kring-agent, kring-agent check; port 7443 must be open to the controllers",
            host.connection
        );
        troubles.push(Trouble::new(Grade::Bad, of(), "connection", text));
    }
    for finding in &host.facts.findings {
        troubles.push(Trouble::new(finding.grade, of(), &finding.what, finding.text.clone()));
    }
    if !controllers.is_empty() && controllers.iter().all(|c| c.version != host.facts.agent_version) {
        let text =
            format!("is {}, the controllers have another: upgrade the agent (VMs run on)", host.facts.agent_version);
        troubles.push(Trouble::new(Grade::Poor, of(), "version", text));
    }
}

fn of_storage(storage: &Storage, hosts: &HashMap<HostId, String>, troubles: &mut Vec<Trouble>) {
    let name = |id: HostId| hosts.get(&id).cloned().unwrap_or_else(|| id.to_string());
    let full = |total: Bytes, available: Bytes| total.0 > 0 && available.0 < total.0 / FREE;
    for host in &storage.hosts {
        let of = format!("storage {} on {}", storage.name, name(host.host_id));
        if let Some(error) = &host.error {
            troubles.push(Trouble::new(Grade::Bad, of, "use", error.clone()));
        } else if storage.capacity.is_none() && full(host.total, host.available) {
            let text = format!("only {} of {} are free: make room", host.available, host.total);
            troubles.push(Trouble::new(Grade::Poor, of, "space", text));
        }
    }
    if let Some(capacity) = storage.capacity.filter(|c| full(c.total, c.available)) {
        let text = format!("only {} of {} are free: make room", capacity.available, capacity.total);
        troubles.push(Trouble::new(Grade::Poor, format!("storage {}", storage.name), "space", text));
    }
}

fn tell(ctx: &Ctx, troubles: &[Trouble], controllers: usize, hosts: usize) -> Result<()> {
    let bad = troubles.iter().filter(|trouble| trouble.grade == Grade::Bad).count();
    if ctx.for_people() {
        let rows: Vec<Vec<Cell>> = troubles
            .iter()
            .map(|trouble| {
                let mark = match trouble.grade {
                    Grade::Bad => Cell::new("FAIL").tone(Tone::Bad),
                    Grade::Poor | Grade::Good => Cell::new("warn").tone(Tone::Busy),
                };
                vec![mark, Cell::new(&trouble.of), Cell::new(&trouble.what), Cell::new(&trouble.text)]
            })
            .collect();
        if !rows.is_empty() {
            let heads =
                ["", "of", "what", "found, and what to do"].map(|text| Head { text: text.into(), right: false });
            line(&table(&heads, &rows, colours()))?;
        }
        note(&format!(
            "Looked at {controllers} controllers and {hosts} hosts: {bad} things do not work, {} could be better.",
            troubles.len() - bad
        ));
    } else {
        let all: Vec<Value> =
            troubles.iter().map(|t| json!({ "grade": t.grade, "of": t.of, "what": t.what, "text": t.text })).collect();
        value(&json!({ "controllers": controllers, "hosts": hosts, "findings": all }), ctx.format)?;
    }
    if bad > 0 { Err(CliError::Several { code: exit::FAILED }) } else { Ok(()) }
}
