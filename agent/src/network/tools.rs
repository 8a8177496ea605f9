//! How this folder runs programs and waits for what nobody tells of.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Error;
use crate::cmd::Cmd;

/// How programs are run for one command: with its cancellation, within the configured time.
#[derive(Clone, Copy, Debug)]
pub struct Tools<'a> {
    /// Kills what runs.
    pub cancel: &'a CancellationToken,
    /// How long one program may take.
    pub limit: Duration,
}

impl Tools<'_> {
    /// A program, within its time.
    pub(super) fn cmd(&self, program: &str) -> Cmd {
        Cmd::new(program).within(self.limit)
    }

    /// Waits until something outside of the agent has happened that nobody tells of.
    pub(super) async fn until(&self, what: &'static str, done: impl Fn() -> bool) -> Result<(), Error> {
        let poll = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(self.limit, poll).await.map_err(|_| Error::TooLong(what))
    }
}
