//! The only place where the command line starts other programs.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::error::{CliError, Result};

/// Finds a program of Kring: beside this one, or where programs are looked for.
pub fn find(name: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = beside.into_iter().chain(std::env::split_paths(&path).map(|folder| folder.join(name)));
    found.into_iter().find(|file| file.is_file()).ok_or_else(|| CliError::Conflict {
        message: format!("{name} is not on this machine"),
        hint: format!("install the package {name}, or put the program beside kring"),
    })
}

/// Starts a program that writes into `log` and ends with the value that is returned.
#[expect(clippy::disallowed_methods, reason = "this is where programs are started")]
pub fn start(program: &Path, args: &[&OsStr], log: &Path) -> Result<Child> {
    let failed = |source| CliError::Io { doing: format!("starting {}", program.display()), source };
    let file = File::options().create(true).append(true).open(log).map_err(failed)?;
    let other = file.try_clone().map_err(failed)?;
    let mut command = Command::new(program);
    // What configures this machine's controller is not for this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KRING_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).stdout(file).stderr(other).kill_on_drop(true).spawn().map_err(failed)
}
