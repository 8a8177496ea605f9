//! The commands, one file per noun; `verbs.rs` has what all nouns do alike.

pub mod account;
pub mod cluster;
pub mod completion;
pub mod console;
pub mod controller;
pub mod dev;
pub mod doctor;
pub mod event;
pub mod host;
pub mod image;
pub mod instance_type;
pub mod job;
pub mod login;
pub mod network;
pub mod service;
pub mod setting;
pub mod status;
pub mod storage;
pub mod token;
pub mod verbs;
pub mod vm;
pub mod vm_create;
pub mod volume;
pub mod zone;

use crate::cli::{Cli, Command};
use crate::context::Ctx;
use crate::error::Result;

/// Runs one command.
pub async fn run(cli: Cli) -> Result<()> {
    let global = cli.global;
    let ctx = || Ctx::new(&global);
    match cli.command {
        Command::Vm(command) => Box::pin(vm::run(&ctx()?, command)).await,
        Command::Image(command) => Box::pin(image::run(&ctx()?, command)).await,
        Command::Network(command) => Box::pin(network::run(&ctx()?, command)).await,
        Command::Volume(command) => Box::pin(volume::run(&ctx()?, command)).await,
        Command::InstanceType(command) => Box::pin(instance_type::run(&ctx()?, command)).await,
        Command::Host(command) => Box::pin(host::run(&ctx()?, command)).await,
        Command::Storage(command) => Box::pin(storage::run(&ctx()?, command)).await,
        Command::Cluster(command) => Box::pin(cluster::run(&ctx()?, command)).await,
        Command::Zone(command) => Box::pin(zone::run(&ctx()?, command)).await,
        Command::Job(command) => Box::pin(job::run(&ctx()?, command)).await,
        Command::Event(command) => Box::pin(event::run(&ctx()?, command)).await,
        Command::Setting(command) => Box::pin(setting::run(&ctx()?, command)).await,
        Command::Account(command) => Box::pin(account::run(&ctx()?, command)).await,
        Command::Token(command) => Box::pin(token::run(&ctx()?, command)).await,
        Command::Service(command) => Box::pin(service::run(&ctx()?, command)).await,
        Command::Controller(command) => Box::pin(controller::run(&ctx()?, command)).await,
        Command::Ring(command) => Box::pin(controller::run_ring(&ctx()?, command)).await,
        Command::Status(command) => Box::pin(status::run(&ctx()?, command)).await,
        Command::Dev(command) => Box::pin(dev::run(&global, command)).await,
        Command::Doctor(command) => Box::pin(doctor::run(&ctx()?, command)).await,
        Command::Login(command) => Box::pin(login::run(&global, command)).await,
        Command::Context(command) => login::contexts(&global, command),
        Command::Completion(command) => completion::run(&command),
        Command::Manual(command) => completion::write_manual(&command),
    }
}
