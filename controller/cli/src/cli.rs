//! The command tree's root and the arguments that several commands share.
//!
//! Each noun's own verbs and arguments are in its file under `commands/`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::{
    account, cluster, completion, controller, dev, doctor, event, host, image, instance_type, job, login, network,
    service, setting, status, storage, token, vm, volume, zone,
};
use crate::input;

const AFTER: &str = "\
Things are named by name, by id, or by the short id of the tables; jobs and controllers by their id.

Exit codes:
  0    done
  1    the work failed
  2    the arguments or the request are not valid
  3    there is no such thing
  4    the state of things does not allow it, or a name is taken or ambiguous
  5    the controller cannot be reached, or does not let you in
  6    not done in time; the job goes on
  130  Ctrl-C; the job goes on

Where the controller is found, first match wins:
  --controller, --ca, --token or --context
  KRING_URL, KRING_CA, KRING_TOKEN (KRING_CONFIG names another configuration file)
  ~/.config/kring/config.toml, written by kring login
  /etc/kring/cli.toml

Examples:
  kring login --url https://10.0.0.1:8443 --ca ca.pem --token-stdin < token
  kring image create debian --url https://example.org/debian-12.qcow2
  kring network create lan --cidr 10.77.0.0/24
  kring vm create web --image debian --vcpus 2 --memory 2GiB --network lan \\
      --ssh-key ~/.ssh/id_ed25519.pub
  kring vm console web
  kring vm list -q 'state = running' -o json";

/// Kring: a cloud of KVM hosts, from the command line.
#[derive(Debug, Parser)]
#[command(name = "kring", version, after_help = AFTER, max_term_width = 100, arg_required_else_help = true)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Format of results: table for people, json or yaml for programs, name for names alone
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    #[arg(hide_possible_values = true, hide_default_value = true, help_heading = "Output")]
    pub output: Format,
    /// Show the requests that are sent
    #[arg(short, long, global = true, help_heading = "Output")]
    pub verbose: bool,
    #[command(flatten)]
    pub connection: Connection,
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
    Name,
}

/// Which controller, and as whom.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Take this context of the configuration
    #[arg(long, global = true, hide_short_help = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Address of a controller; several with commas: the next one is tried when one does not answer
    #[arg(long, global = true, hide_short_help = true, value_name = "URL", value_delimiter = ',')]
    pub controller: Vec<String>,
    /// File with the controller's certificate authority (PEM)
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Token; others on this machine can see it in the list of processes: prefer KRING_TOKEN
    #[arg(long, global = true, hide_short_help = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Configuration file
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Virtual machines: make, run, watch and remove them
    #[command(subcommand)]
    Vm(vm::Command),
    /// Images that vms are made from
    #[command(subcommand)]
    Image(image::Command),
    /// Networks that vms are connected to
    #[command(subcommand)]
    Network(network::Command),
    /// Volumes: the disks of vms
    #[command(subcommand)]
    Volume(volume::Command),
    /// Instance types: sizes of vms by name
    #[command(subcommand)]
    InstanceType(instance_type::Command),
    /// Hosts: let them join, take them out, look after them
    #[command(subcommand)]
    Host(host::Command),
    /// Storages: where volumes are kept
    #[command(subcommand)]
    Storage(storage::Command),
    /// Clusters: hosts that share networks and storage
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Zones: failure domains that hold clusters
    #[command(subcommand)]
    Zone(zone::Command),
    /// Jobs: accepted work
    #[command(subcommand)]
    Job(job::Command),
    /// Events: what happened, and what happens now
    #[command(subcommand)]
    Event(event::Command),
    /// Settings that change how Kring behaves
    #[command(subcommand)]
    Setting(setting::Command),
    /// Accounts: owners of resources
    #[command(subcommand)]
    Account(account::Command),
    /// Tokens: keys that programs and people use
    #[command(subcommand)]
    Token(token::Command),
    /// Services of the controller
    #[command(subcommand)]
    Service(service::Command),
    /// Controllers: who shares the work
    #[command(subcommand)]
    Controller(controller::Command),
    /// The ring: which controller owns a resource
    #[command(subcommand)]
    Ring(controller::RingCommand),
    /// An overview: hosts, vms, what is free
    Status(status::Status),
    /// A cloud to try things on: a controller with simulated hosts, until Ctrl-C
    Dev(dev::Dev),
    /// What is not as it should be, and what to do
    Doctor(doctor::Doctor),
    /// Save a controller's address and token, and check them
    Login(login::Login),
    /// The saved controllers
    #[command(subcommand)]
    Context(login::ContextCommand),
    /// Completion of commands by the Tab key
    Completion(completion::Completion),
    /// Write the manual pages into a folder, for packages
    #[command(hide = true)]
    Manual(completion::Manual),
}

/// What every list takes.
#[derive(Clone, Debug, Default, Args)]
pub struct ListArgs {
    /// Only those that match, such as 'state = running and name like "web-%"'
    #[arg(short = 'q', long, value_name = "EXPRESSION")]
    pub filter: Option<String>,
    /// Order by a field, -FIELD for the other way round
    #[arg(long, value_name = "FIELD", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// All of them
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
    /// Only how many there are
    #[arg(long, conflicts_with_all = ["all", "sort", "columns"])]
    pub count: bool,
    /// Columns of the table, or any fields of the JSON such as nics.0.mac
    #[arg(long, value_name = "KEY,KEY", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// All columns, with whole ids
    #[arg(long, visible_alias = "wide")]
    pub full: bool,
}

/// What every command takes that changes something.
#[derive(Clone, Debug, Args)]
pub struct ChangeArgs {
    /// Wait until the work is done (this is the default)
    #[arg(long, overrides_with = "no_wait", hide_short_help = true)]
    pub wait: bool,
    /// Do not wait: print the job and leave
    #[arg(long, overrides_with = "wait")]
    pub no_wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = input::duration)]
    pub timeout: Duration,
    /// Change nothing: say what would happen
    #[arg(long)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    // An argument of the same id would be taken for the global one as well: `controller show ID` had asked a controller at ID.
    #[test]
    fn no_argument_has_the_id_of_one_that_every_command_takes() {
        fn walk(command: &clap::Command, path: &str, global: &[&clap::Id]) {
            for verb in command.get_subcommands() {
                let path = format!("{path} {}", verb.get_name());
                for argument in verb.get_arguments() {
                    assert!(!global.contains(&argument.get_id()), "{path}: {}", argument.get_id());
                }
                walk(verb, &path, global);
            }
        }
        let root = Cli::command();
        let global: Vec<_> = root.get_arguments().filter(|a| a.is_global_set()).map(clap::Arg::get_id).collect();
        assert!(global.len() > 5, "{global:?}");
        walk(&root, "kring", &global);
    }

    #[test]
    fn every_command_has_help_and_every_verb_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no help");
            let verbs: Vec<_> = command.get_subcommands().collect();
            if verbs.is_empty() {
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains(&format!("  {path}")), "{path} has no example of itself");
            }
            for verb in verbs {
                walk(verb, &format!("{path} {}", verb.get_name()));
            }
        }
        walk(&Cli::command(), "kring");
    }
}
