//! `kring host`: KVM machines that run an agent.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use shared::api::host::{CreateJoinToken, Host, HostAdminState, JoinToken, UpdateHost};
use shared::id::{ClusterId, ResourceId as _};
use shared::name::Name;
use shared::units::Bytes;
use shared::wire::host::VirtMode;
use uuid::Uuid;

use super::verbs::{self, Change, body, change, change_each};
use crate::cli::{ChangeArgs, Format, ListArgs};
use crate::client::Call;
use crate::client::list::Query;
use crate::config::is_loopback;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::input;
use crate::output::table::{Cell, Tone};
use crate::output::view::{Column, Resource, View};
use crate::output::{line, note, value};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List hosts with what is free on them
    #[command(after_help = "Examples:\n  kring host list\n  kring host list -q 'connection != connected'")]
    List(ListArgs),
    /// Show all about a host
    #[command(after_help = "Examples:\n  kring host show h1")]
    Show {
        /// Name or id
        host: String,
    },
    /// Let hosts take new vms
    #[command(after_help = "Examples:\n  kring host enable h1")]
    Enable(Which),
    /// Let hosts keep their vms, but take no new ones
    #[command(after_help = "Examples:\n  kring host disable h1")]
    Disable(Which),
    /// Take hosts out for maintenance: their vms move to other hosts, and they take none
    #[command(
        alias = "maintenance",
        after_help = "Examples:\n  kring host maintain h1\n  kring host enable h1   (afterwards)"
    )]
    Maintain(Which),
    /// Give a host another name
    #[command(after_help = "Examples:\n  kring host rename h1 rack1-h1")]
    Rename {
        /// Name or id
        host: String,
        /// The new name
        new_name: Name,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Connect to hosts again, and compare what is on them
    #[command(after_help = "Examples:\n  kring host reconnect h1")]
    Reconnect(Which),
    /// Take hosts out of Kring; they must hold no vm
    #[command(after_help = "Examples:\n  kring host remove h1")]
    Remove(Which),
    /// Make a one-time token that lets a new host join
    #[command(
        after_help = "Examples:\n  kring host join-token\n  kring host join-token --cluster main --ttl 10m -o name > token"
    )]
    JoinToken {
        /// Cluster that the host joins: name or id; not needed when there is one
        #[arg(long)]
        cluster: Option<String>,
        /// How long it works, 10s to 7d; one hour when not given
        #[arg(long, value_name = "DURATION", value_parser = input::duration)]
        ttl: Option<Duration>,
    },
}

/// Some hosts.
#[derive(Debug, Args)]
pub struct Which {
    /// Names or ids
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::List(args) => verbs::list::<Host>(ctx, &args).await,
        Command::Show { host } => verbs::show::<Host>(ctx, &host).await,
        Command::Enable(which) => set(ctx, which, HostAdminState::Enabled, "is enabled").await,
        Command::Disable(which) => set(ctx, which, HostAdminState::Disabled, "is disabled").await,
        Command::Maintain(which) => {
            let make = |name: &str, id: Uuid| Change::action(Noun::HOST, name, id, "maintain", "is in maintenance");
            change_each(ctx, Noun::HOST, &which.hosts, &which.change, make).await
        }
        Command::Rename { host, new_name, change: args } => {
            let id = resolve::id(&ctx.client, Noun::HOST, &host).await?;
            let request = body(&UpdateHost { name: Some(new_name), admin_state: None })?;
            change(ctx, Change::patch(Noun::HOST, &host, id, request, "renamed"), &args).await
        }
        Command::Reconnect(which) => {
            let make = |name: &str, id: Uuid| Change::action(Noun::HOST, name, id, "reconnect", "reconnected");
            change_each(ctx, Noun::HOST, &which.hosts, &which.change, make).await
        }
        Command::Remove(which) => {
            let make = |name: &str, id: Uuid| Change::delete(Noun::HOST, name, id, "removed");
            change_each(ctx, Noun::HOST, &which.hosts, &which.change, make).await
        }
        Command::JoinToken { cluster, ttl } => join_token(ctx, cluster.as_deref(), ttl).await,
    }
}

async fn set(ctx: &Ctx, which: Which, state: HostAdminState, done: &'static str) -> Result<()> {
    let request = body(&UpdateHost { name: None, admin_state: Some(state) })?;
    let make = |name: &str, id: Uuid| Change::patch(Noun::HOST, name, id, request.clone(), done);
    change_each(ctx, Noun::HOST, &which.hosts, &which.change, make).await
}

async fn join_token(ctx: &Ctx, cluster: Option<&str>, ttl: Option<Duration>) -> Result<()> {
    let cluster_id = match cluster {
        Some(given) => Some(ClusterId::from_uuid(resolve::id(&ctx.client, Noun::CLUSTER, given).await?)),
        None => None,
    };
    let ttl_s = ttl.map(|ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX));
    let request = body(&CreateJoinToken { cluster_id, ttl_s })?;
    let reply = ctx.client.send(Call::new(Method::POST, "/join_tokens").body(request)).await?;
    if matches!(ctx.format, Format::Json | Format::Yaml) {
        return value(&reply.body, ctx.format);
    }
    let token: JoinToken = serde_json::from_value(reply.body)
        .map_err(|e| CliError::Protocol(format!("the server's join token cannot be read: {e}")))?;
    if ctx.for_people() {
        let url = url_for_hosts(ctx).await;
        note(&format!("Good for one host until {}. On that host:", token.expires_at));
        note(&format!("  kring-agent join --controller {url} --token TOKEN"));
    }
    line(&token.token)
}

/// Where another machine finds a controller: what leads to this machine alone is no help there.
async fn url_for_hosts(ctx: &Ctx) -> String {
    let own = ctx.client.url();
    if is_loopback(own) {
        let query = Query { limit: Some(1), ..Query::default() };
        let listed = ctx.client.list("/controllers", &query).await.map(|listing| listing.items).unwrap_or_default();
        let address = listed.first().and_then(|controller| controller.get("address")?.as_str().map(str::to_string));
        if let Some(address) = address.filter(|address| !address.is_empty()) {
            return address;
        }
    }
    own.as_str().trim_end_matches('/').to_string()
}

fn used(reserved: impl ToString, total: impl ToString) -> Cell {
    Cell::new(format!("{} of {}", reserved.to_string(), total.to_string()))
}

impl Resource for Host {
    const NOUN: Noun = Noun::HOST;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |host, _| Cell::new(&host.name)),
        Column::new("admin", |host, _| Cell::state(host.admin_state.as_str())),
        Column::new("connection", |host, _| Cell::state(host.connection.as_str())),
        Column::number("vcpus", |host, _| used(host.capacity.vcpus_reserved, host.capacity.vcpus_total)),
        Column::number("memory", |host, _| used(host.capacity.memory_reserved, host.capacity.memory_total)),
        Column::new("guests", |host, _| match host.facts.virt_mode {
            VirtMode::Kvm => Cell::new("kvm"),
            VirtMode::Emulated => Cell::new("emulated").tone(Tone::Busy),
        }),
        Column::new("address", |host, _| Cell::new(&host.address)),
        Column::wide("cluster", |host, view| view.name(host.cluster_id)),
        Column::wide("agent", |host, _| Cell::new(&host.facts.agent_version)),
        Column::new("seen", |host, view| host.last_seen_at.map_or_else(|| Cell::new("never"), |at| view.age(at))),
        Column::wide("age", |host, view| view.age(host.created_at)),
        Column::new("id", |host, view| view.id(host.id.uuid())),
    ];

    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        vec![(Noun::CLUSTER, self.cluster_id.uuid())]
    }

    fn details(&self, _view: &View) -> Vec<(String, Vec<Cell>)> {
        let facts = &self.facts;
        let mut pairs = Vec::new();
        let mut add = |label: &str, text: String| {
            if !text.trim().is_empty() {
                pairs.push((label.to_string(), vec![Cell::new(text)]));
            }
        };
        add("not connected", self.connection_reason.clone().unwrap_or_default());
        if facts.virt_mode == VirtMode::Emulated {
            add("emulated", facts.virt_reason.clone());
        }
        add("system", format!("{} (kernel {}, {})", facts.os, facts.kernel, facts.arch));
        add("processors", format!("{} × {}", facts.cpus, facts.cpu_model));
        add("installed memory", facts.memory.to_string());
        add("libvirt", format!("{} with QEMU {}", facts.libvirt_version, facts.qemu_version));
        let mut list = |label: &str, cells: Vec<Cell>| {
            if !cells.is_empty() {
                pairs.push((label.to_string(), cells));
            }
        };
        let disk = |name: &str, size: Bytes, spins: bool| {
            Cell::new(format!("{name}  {size}{}", if spins { ", rotational" } else { "" }))
        };
        list("disks", facts.disks.iter().map(|d| disk(&d.name, d.size, d.rotational)).collect());
        let nic = |nic: &shared::wire::host::NicFact| {
            Cell::new(format!("{}  {}  {}", nic.name, nic.mac, if nic.up { "up" } else { "down" }))
        };
        list("interfaces", facts.nics.iter().map(nic).collect());
        pairs
    }
}
