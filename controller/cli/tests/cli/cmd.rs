//! Runs the program in a clean environment. The only place here that starts processes.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The same run, when it ended with this code.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// The program with nothing of this machine's configuration.
#[expect(clippy::disallowed_methods, reason = "the program under test is started here and nowhere else")]
pub fn kring(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kring"));
    command
        .env_clear()
        .env("HOME", home)
        .env("KRING_CONFIG", home.join("config.toml"))
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a prepared command to its end.
pub async fn finish(mut command: Command) -> Run {
    let output = command.output().await.unwrap();
    read(output)
}

/// Runs a prepared command to its end with this input.
pub async fn finish_with_input(mut command: Command, input: &[u8]) -> Run {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program may leave before it has read all of it.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    read(child.wait_with_output().await.unwrap())
}

fn read(output: std::process::Output) -> Run {
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
