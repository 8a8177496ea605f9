//! `kring vm`: virtual machines.

use clap::{Args, Subcommand};
use shared::api::vm::{MigrateVm, StopMode, StopVm, UpdateVm, Vm};
use shared::api::volume::{AttachVolume, Volume};
use shared::id::{HostId, ResourceId as _, VmId};
use shared::name::Name;
use shared::units::Bytes;
use uuid::Uuid;

use super::console::{self, ConsoleArgs, LogArgs, VncArgs};
use super::verbs::{self, Change, body, change, change_each};
use super::vm_create::{self, Create};
use crate::cli::{ChangeArgs, ListArgs};
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::table::Cell;
use crate::output::view::{Column, Resource, View, parse};
use crate::resolve::{self, Noun};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a vm, and start it
    Create(Box<Create>),
    /// List vms
    #[command(
        after_help = "Examples:\n  kring vm list\n  kring vm list -q 'state = running and name like \"web-%\"'\n  kring vm list --sort -id   (the newest first)\n  kring vm list --columns name,state,nics.0.mac\n  kring vm list --all -o json"
    )]
    List(ListArgs),
    /// Show all about a vm, and what can be done with it now
    #[command(after_help = "Examples:\n  kring vm show web\n  kring vm show web -o json")]
    Show {
        /// Name or id
        vm: String,
    },
    /// Start vms
    #[command(after_help = "Examples:\n  kring vm start web\n  kring vm start web-1 web-2 --no-wait")]
    Start(Which),
    /// Stop vms: ask the guest, and pull the plug when it does not stop in time
    #[command(
        after_help = "Examples:\n  kring vm stop web\n  kring vm stop web --grace 5m\n  kring vm stop web --force\n  kring vm stop web --guest-only   (fail rather than pull the plug)"
    )]
    Stop(Stop),
    /// Restart vms
    #[command(after_help = "Examples:\n  kring vm reboot web\n  kring vm reboot web --force")]
    Reboot(Stop),
    /// Halt the processors of vms; their memory is kept
    #[command(after_help = "Examples:\n  kring vm pause web")]
    Pause(Which),
    /// Let paused vms go on
    #[command(after_help = "Examples:\n  kring vm resume web")]
    Resume(Which),
    /// Give a vm another name
    #[command(after_help = "Examples:\n  kring vm rename web web-old")]
    Rename {
        /// Name or id
        vm: String,
        /// The new name
        new_name: Name,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Move running or paused vms to another host, while they run
    #[command(after_help = "Examples:\n  kring vm migrate web\n  kring vm migrate web --host kvm2")]
    Migrate(Migrate),
    /// Give a stopped vm other sizes
    #[command(after_help = "Examples:\n  kring vm resize web --vcpus 4 --memory 8GiB")]
    Resize(Resize),
    /// Change name, sizes and whether it starts with its host, at once
    #[command(after_help = "Examples:\n  kring vm update web --name web-big --memory 8GiB")]
    Update(Update),
    /// Delete vms; they can be recovered until they are expunged
    #[command(after_help = "Examples:\n  kring vm delete web\n  kring vm recover web   (changed your mind)")]
    Delete(Which),
    /// Bring deleted vms back, stopped
    #[command(after_help = "Examples:\n  kring vm recover web && kring vm start web")]
    Recover(Which),
    /// Remove deleted vms and their disks for good
    #[command(after_help = "Examples:\n  kring vm expunge web   (after: kring vm delete web)")]
    Expunge(Which),
    /// The serial console: type into the guest; Ctrl-] leaves
    #[command(
        after_help = "Examples:\n  kring vm console web\n  kring vm console web --log   (only read, from the log)"
    )]
    Console(ConsoleArgs),
    /// What the guest wrote to its serial console
    #[command(after_help = "Examples:\n  kring vm log web\n  kring vm log web -f")]
    Log(LogArgs),
    /// The screen: a local port for a VNC viewer
    #[command(
        after_help = "Examples:\n  kring vm vnc web\n  kring vm vnc web --listen 127.0.0.1:0   (any free port)\n  then: vncviewer 127.0.0.1:5900"
    )]
    Vnc(VncArgs),
    /// Give a vm a data volume, running or stopped
    #[command(after_help = "Examples:\n  kring vm attach-volume web data")]
    AttachVolume(VmAndVolume),
    /// Take a data volume from a vm, running or stopped
    #[command(after_help = "Examples:\n  kring vm detach-volume web data")]
    DetachVolume(VmAndVolume),
}

/// Some vms.
#[derive(Debug, Args)]
pub struct Which {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<String>,
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// Where vms are moved to.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// The host to move to: name or id; the placement chooses when not given
    #[arg(long)]
    host: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// How vms are stopped.
#[derive(Debug, Args)]
pub struct Stop {
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
    /// Pull the plug at once
    #[arg(long)]
    force: bool,
    /// Fail when the guest does not stop in time, rather than pull the plug
    #[arg(long, conflicts_with = "force")]
    guest_only: bool,
    /// How long the guest may take, up to an hour
    #[arg(long, value_name = "DURATION", conflicts_with = "force", value_parser = crate::input::duration)]
    grace: Option<std::time::Duration>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// New sizes.
#[derive(Debug, Args)]
pub struct Resize {
    /// Name or id
    vm: String,
    /// Virtual processors
    #[arg(long, required_unless_present = "memory")]
    vcpus: Option<u32>,
    /// Memory, such as 8GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// New name and sizes.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").args(["name", "vcpus", "memory", "auto_start"]).required(true).multiple(true)))]
pub struct Update {
    /// Name or id
    vm: String,
    /// The new name
    #[arg(long)]
    name: Option<Name>,
    /// Virtual processors
    #[arg(long)]
    vcpus: Option<u32>,
    /// Memory, such as 8GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Whether it starts again by itself when its host has restarted: true or false
    #[arg(long, value_name = "BOOL")]
    auto_start: Option<bool>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// A vm and a volume.
#[derive(Debug, Args)]
pub struct VmAndVolume {
    /// Name or id of the vm
    vm: String,
    /// Name or id of the volume
    volume: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::Create(create) => vm_create::run(ctx, *create).await,
        Command::List(args) => verbs::list::<Vm>(ctx, &args).await,
        Command::Show { vm } => verbs::show::<Vm>(ctx, &vm).await,
        Command::Start(which) => act(ctx, which, "start", "started").await,
        Command::Stop(stop) => halt(ctx, stop, "stop", "stopped").await,
        Command::Reboot(stop) => halt(ctx, stop, "reboot", "rebooted").await,
        Command::Pause(which) => act(ctx, which, "pause", "paused").await,
        Command::Resume(which) => act(ctx, which, "resume", "resumed").await,
        Command::Migrate(args) => {
            let host_id = match &args.host {
                Some(given) => Some(HostId::from_uuid(resolve::id(&ctx.client, Noun::HOST, given).await?)),
                None => None,
            };
            let body = body(&MigrateVm { host_id })?;
            let make = |name: &str, id: Uuid| {
                Change::action(Noun::VM, name, id, "migrate", "migrated").with_body(body.clone())
            };
            change_each(ctx, Noun::VM, &args.vms, &args.change, make).await
        }
        Command::Rename { vm, new_name, change } => {
            update(ctx, &vm, UpdateVm { name: Some(new_name), ..UpdateVm::default() }, "renamed", &change).await
        }
        Command::Resize(Resize { vm, vcpus, memory, change }) => {
            update(ctx, &vm, UpdateVm { vcpus, memory, ..UpdateVm::default() }, "resized", &change).await
        }
        Command::Update(Update { vm, name, vcpus, memory, auto_start, change }) => {
            update(ctx, &vm, UpdateVm { name, vcpus, memory, auto_start }, "updated", &change).await
        }
        Command::Delete(Which { vms, change }) => {
            change_each(ctx, Noun::VM, &vms, &change, |name, id| Change::delete(Noun::VM, name, id, "deleted")).await
        }
        Command::Recover(which) => act(ctx, which, "recover", "recovered").await,
        Command::Expunge(which) => act(ctx, which, "expunge", "expunged").await,
        Command::Console(args) => console::serial(ctx, args).await,
        Command::Log(args) => console::log(ctx, args).await,
        Command::Vnc(args) => console::vnc(ctx, args).await,
        Command::AttachVolume(both) => {
            let vm = resolve::id(&ctx.client, Noun::VM, &both.vm).await?;
            attach(ctx, &both.volume, vm, &both.change).await
        }
        Command::DetachVolume(both) => {
            let vm = resolve::id(&ctx.client, Noun::VM, &both.vm).await?;
            detach(ctx, &both.volume, Some((vm, &both.vm)), &both.change).await
        }
    }
}

async fn act(ctx: &Ctx, which: Which, action: &'static str, done: &'static str) -> Result<()> {
    let make = |name: &str, id: Uuid| Change::action(Noun::VM, name, id, action, done);
    change_each(ctx, Noun::VM, &which.vms, &which.change, make).await
}

async fn halt(ctx: &Ctx, stop: Stop, action: &'static str, done: &'static str) -> Result<()> {
    let mode = match (stop.force, stop.guest_only) {
        (true, _) => StopMode::Force,
        (_, true) => StopMode::GracefulOnly,
        _ => StopMode::Graceful,
    };
    let timeout_s = stop.grace.map(|grace| u32::try_from(grace.as_secs()).unwrap_or(u32::MAX));
    let request = body(&StopVm { mode, timeout_s })?;
    let make = |name: &str, id: Uuid| Change::action(Noun::VM, name, id, action, done).with_body(request.clone());
    change_each(ctx, Noun::VM, &stop.vms, &stop.change, make).await
}

async fn update(ctx: &Ctx, vm: &str, request: UpdateVm, done: &'static str, args: &ChangeArgs) -> Result<()> {
    let id = resolve::id(&ctx.client, Noun::VM, vm).await?;
    change(ctx, Change::patch(Noun::VM, vm, id, body(&request)?, done), args).await
}

/// Attaches a volume to a vm.
pub async fn attach(ctx: &Ctx, volume: &str, vm: Uuid, args: &ChangeArgs) -> Result<()> {
    let id = resolve::id(&ctx.client, Noun::VOLUME, volume).await?;
    let request = body(&AttachVolume { vm_id: VmId::from_uuid(vm) })?;
    change(ctx, Change::action(Noun::VOLUME, volume, id, "attach", "attached").with_body(request), args).await
}

/// Detaches a volume, after a look at whether it is this vm's.
pub async fn detach(ctx: &Ctx, volume: &str, vm: Option<(Uuid, &str)>, args: &ChangeArgs) -> Result<()> {
    let found: Volume = parse(&resolve::fetch(&ctx.client, Noun::VOLUME, volume).await?)?;
    if let Some((vm, name)) = vm
        && found.vm_id != Some(VmId::from_uuid(vm))
    {
        return Err(CliError::Conflict {
            message: format!("volume {volume} is not attached to vm {name}"),
            hint: format!("see where it is: kring volume show {volume}"),
        });
    }
    change(ctx, Change::action(Noun::VOLUME, volume, found.id.uuid(), "detach", "detached"), args).await
}

impl Resource for Vm {
    const NOUN: Noun = Noun::VM;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("name", |vm, _| Cell::new(&vm.name)),
        Column::new("state", |vm, _| {
            let state = Cell::state(vm.state.as_str());
            // The host does not answer: what it told last is better than nothing, and no more than that.
            vm.last_known_state.map_or(state.clone(), |was| state.and(&format!(", was {was}")))
        }),
        Column::number("vcpus", |vm, _| Cell::new(vm.vcpus)),
        Column::number("memory", |vm, _| Cell::new(vm.memory)),
        Column::new("address", |vm, _| {
            Cell::new(vm.nics.iter().map(|nic| nic.ip.to_string()).collect::<Vec<_>>().join(", "))
        }),
        Column::new("host", |vm, view| view.maybe_name(vm.host_id)),
        Column::wide("image", |vm, view| view.name(vm.image_id)),
        Column::wide("firmware", |vm, _| Cell::new(format!("{:?}", vm.firmware).to_lowercase())),
        Column::wide("hostname", |vm, _| Cell::new(&vm.hostname)),
        Column::wide("since", |vm, view| view.age(vm.state_since)),
        Column::new("age", |vm, view| view.age(vm.created_at)),
        Column::new("id", |vm, view| view.id(vm.id.uuid())),
    ];

    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        let mut refers = vec![(Noun::IMAGE, self.image_id.uuid())];
        refers.extend(self.host_id.map(|id| (Noun::HOST, id.uuid())));
        refers.extend(self.instance_type_id.map(|id| (Noun::INSTANCE_TYPE, id.uuid())));
        refers.extend(self.nics.iter().map(|nic| (Noun::NETWORK, nic.network_id.uuid())));
        refers
    }

    fn details(&self, view: &View) -> Vec<(String, Vec<Cell>)> {
        let nic = |nic: &shared::api::vm::Nic| {
            Cell::new(format!("{}  {}  {}", view.name(nic.network_id).text, nic.ip, nic.mac))
        };
        let mut pairs = vec![("root volume".to_string(), vec![view.id(self.root_volume_id.uuid())])];
        if self.instance_type_id.is_some() {
            pairs.push(("instance type".to_string(), vec![view.maybe_name(self.instance_type_id)]));
        }
        if !self.nics.is_empty() {
            pairs.push(("networks".to_string(), self.nics.iter().map(nic).collect()));
        }
        pairs.push(("created".to_string(), vec![Cell::new(self.created_at)]));
        if let Some(at) = self.deleted_at {
            pairs.push(("deleted".to_string(), vec![Cell::new(at)]));
        }
        pairs
    }
}
