//! The terminal in raw mode, for as long as a guard lives.
//!
//! The guard gives the terminal back however its scope is left: return, error, panic, signal.

use std::io::{IsTerminal as _, Stdin};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::{CliError, Result};

/// Standard input in raw mode: every key comes at once and none is acted on.
pub struct Raw {
    stdin: Stdin,
    before: Termios,
}

impl Raw {
    /// Turns raw mode on; nothing happens when standard input is not a terminal.
    pub fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |e: nix::Error| CliError::io("cannot set the terminal up", e.into());
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw).map_err(failed)?;
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is no way to tell that it failed on a terminal that does not work.
        let _ = tcsetattr(&self.stdin, SetArg::TCSADRAIN, &self.before);
    }
}
