//! `kring`: the command line of Kring.
//!
//! This file owns the start and the end of the process: it parses the arguments, runs one command on
//! a one-threaded runtime and turns what came of it into an exit code. It knows nothing of any noun.

mod cli;
mod client;
mod cmd;
mod commands;
mod config;
mod context;
mod error;
mod input;
mod output;
mod progress;
mod resolve;
mod terminal;
mod wait;

use std::io::Write as _;

use clap::Parser as _;

use crate::error::CliError;

fn main() {
    let cli = cli::Cli::parse();
    let format = cli.global.output;
    let code = match run(cli) {
        Ok(()) => 0,
        Err(error) => {
            let text = error.render(format);
            if !text.is_empty() {
                // Nothing is left to do when even the error cannot be written.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            error.exit_code()
        }
    };
    // Not a return: a read from the terminal that nobody waits for any more would hold the process up.
    std::process::exit(code);
}

fn run(cli: cli::Cli) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        tokio::select! {
            biased;
            result = Box::pin(commands::run(cli)) => result,
            () = interrupted() => Err(CliError::Interrupted { job: None }),
        }
    });
    runtime.shutdown_background();
    result
}

/// Ctrl-C, for whatever does not act on it by itself. Who does, has a moment to end well.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Nothing can be heard; the signal's own effect stays as it is.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
}
