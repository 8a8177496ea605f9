//! The commands of the protocol, one function each: `verb(app, cx, command) -> Result<Reply>`.
//!
//! Every operation may be run twice and may be cut off anywhere: it looks at what is there and makes
//! it as commanded. [`prepare`] is the list of all commands.

pub mod console;
pub mod host;
pub mod image;
pub mod network;
pub mod vm;
pub mod volume;

use std::sync::Arc;

use serde::Serialize;
use shared::wire::AgentCommand;
use shared::{Code, Error, Result};

use crate::app::App;
use crate::task::{Outcome, Prepared, TaskCx};

/// Reads the command of a path, ready to run.
///
/// # Errors
/// `unknown_message` for a path that no command has, `invalid_request` for a body that is not the command.
pub fn prepare(path: &str, body: &[u8]) -> Result<Prepared> {
    macro_rules! commands {
        ($($command:ty => $verb:path;)*) => {
            match path {
                $(<$command as AgentCommand>::PATH => {
                    let command: $command = read(body)?;
                    Ok(Prepared {
                        path: <$command as AgentCommand>::PATH,
                        resource: command.resource(),
                        run: Box::new(move |app: Arc<App>, cx: TaskCx| Box::pin(async move { reply($verb(&app, &cx, command).await) })),
                    })
                })*
                _ => Err(Error::new(Code::UnknownMessage, "this agent does not know the command; it may be too old")),
            }
        };
    }
    commands! {
        shared::wire::host::InspectHost => host::inspect;
        shared::wire::image::EnsureImage => image::ensure;
        shared::wire::image::DeleteImage => image::delete;
        shared::wire::volume::CreateVolume => volume::create;
        shared::wire::volume::DeleteVolume => volume::delete;
        shared::wire::network::EnsureNetwork => network::ensure;
        shared::wire::network::DeleteNetwork => network::delete;
        shared::wire::vm::EnsureVm => vm::ensure;
        shared::wire::vm::StopVm => vm::stop;
        shared::wire::vm::RebootVm => vm::reboot;
        shared::wire::vm::PauseVm => vm::pause;
        shared::wire::vm::ResumeVm => vm::resume;
        shared::wire::vm::DeleteVm => vm::delete;
        shared::wire::vm::AttachVolume => vm::attach_volume;
        shared::wire::vm::DetachVolume => vm::detach_volume;
        shared::wire::vm::PrepareMigration => vm::prepare;
        shared::wire::vm::MigrateVm => vm::migrate;
        shared::wire::vm::SettleMigration => vm::settle;
        shared::wire::vm::AbandonMigration => vm::abandon;
        shared::wire::vm::ReadConsoleLog => vm::read_console_log;
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|e| Error::new(Code::InvalidRequest, format!("the command cannot be read: {e}")))
}

fn reply(result: Result<impl Serialize>) -> Outcome {
    serde_json::to_value(result?).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_command_and_a_malformed_one_are_told_apart() {
        assert_eq!(prepare("vm/levitate", b"{}").err().unwrap().code, Code::UnknownMessage);
        assert_eq!(prepare("vm/pause", b"{\"vm_id\": 3}").err().unwrap().code, Code::InvalidRequest);
        let id = shared::id::VmId::new();
        let prepared = prepare("vm/pause", format!("{{\"vm_id\": \"{id}\"}}").as_bytes()).unwrap();
        assert_eq!(prepared.resource, shared::id::ResourceId::uuid(id));
    }
}
