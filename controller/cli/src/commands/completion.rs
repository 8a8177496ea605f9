//! `kring completion`: scripts that complete commands by the Tab key; and the manual pages, which are made
//! of the same definitions.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::generate;

use crate::cli::Cli;
use crate::error::Result;
use crate::output::raw;

/// `kring completion`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kring completion bash > /etc/bash_completion.d/kring
  kring completion zsh > ~/.zfunc/_kring
  kring completion fish > ~/.config/fish/completions/kring.fish")]
pub struct Completion {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The shells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Writes the script.
pub fn run(args: &Completion) -> Result<()> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "kring", &mut script);
    raw(&script)
}

/// `kring manual`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  kring manual /usr/share/man/man1")]
pub struct Manual {
    /// The folder, which must exist
    folder: PathBuf,
}

/// Writes one page for each command.
pub fn write_manual(args: &Manual) -> Result<()> {
    Ok(clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &args.folder)?)
}
