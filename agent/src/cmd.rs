//! The only place where the agent starts processes.
//!
//! Every program runs with a deadline, in its own process group, with bounded output, and dies with
//! its group when the deadline passes, the task is cancelled or the future is dropped. Arguments are
//! passed as a list, never through a shell. What a program's output means is its caller's business.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trace::span::around;
use trace::{Kind, Span};

use shared::{Code, Error as WireError};

/// How long a program may take when its caller does not say.
const DEFAULT_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes of standard output that are kept; more is an error, for half a listing is worse than none.
const MAX_STDOUT: usize = 8 << 20;
/// Most bytes of standard error that are kept: its beginning.
const MAX_STDERR: usize = 16 << 10;
/// How long output is still awaited from children of a program that has ended itself.
const DRAIN: Duration = Duration::from_millis(500);

/// A program to run: `Cmd::new("qemu-img").args(["info", path]).deadline(cx.deadline).run(&cx.cancel).await`.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    stdin: Option<Vec<u8>>,
    deadline: Option<Instant>,
    limit: Duration,
}

/// What a program left.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All it wrote to standard output.
    pub stdout: Vec<u8>,
    /// The beginning of what it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Whether it ended with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("{program} could not be started")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its pipes failed.
    #[error("the pipes of {program} failed")]
    Pipe {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{what} failed ({}): {stderr}", .code.map_or_else(|| "ended by a signal".into(), |c| format!("exit code {c}")))]
    Failed {
        /// Program and first argument.
        what: String,
        /// Its exit code; `None` when a signal ended it.
        code: Option<i32>,
        /// The beginning of its standard error, trimmed.
        stderr: String,
    },
    /// It wrote more than is kept.
    #[error("{program} wrote more than {MAX_STDOUT} bytes")]
    TooMuchOutput {
        /// The program.
        program: String,
    },
    /// The deadline passed; it was killed.
    #[error("{program} did not finish in time and was killed")]
    Deadline {
        /// The program.
        program: String,
    },
    /// The task was cancelled; it was killed.
    #[error("{program} was killed because its task was cancelled")]
    Cancelled {
        /// The program.
        program: String,
    },
}

impl From<Error> for WireError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Failed { stderr, .. } if stderr.contains("No space left on device") => Code::NoSpace,
            Error::Deadline { .. } => Code::DeadlineExceeded,
            Error::Cancelled { .. } => Code::Cancelled,
            Error::Start { .. } | Error::Pipe { .. } | Error::Failed { .. } | Error::TooMuchOutput { .. } => {
                Code::HostFailed
            }
        };
        let message = match (&error, code) {
            (_, Code::NoSpace) => "no space is left on the host's disk".to_string(),
            (Error::Start { program, source }, _) if source.kind() == std::io::ErrorKind::NotFound => {
                format!("the program {program} is not installed on the host")
            }
            _ => error.to_string(),
        };
        let wire = Self::new(code, message).with_detail(error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => wire.caused_by(source),
            None => wire,
        }
    }
}

impl Cmd {
    /// A program by name (looked up in `PATH`) or absolute path. Without a deadline it may take 30 seconds.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            stdin: None,
            deadline: None,
            limit: DEFAULT_LIMIT,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Bytes for its standard input; without them it reads from `/dev/null`.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// The moment at which it is killed. Replaces the default limit.
    #[must_use]
    pub fn deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// How long it may take from its start. With a [`Cmd::deadline`] too, the earlier one counts.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self.deadline = self.deadline.map(|d| d.min(Instant::now() + limit));
        self
    }

    /// Runs it to its end; an exit code other than 0 is an error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(self, cancel: &CancellationToken) -> Result<Output, Error> {
        let what = self.what();
        let output = self.run_any(cancel).await?;
        if output.success() {
            return Ok(output);
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_string();
        Err(Error::Failed { what, code: output.code, stderr })
    }

    /// Runs it to its end, whatever its exit code: for programs whose code is an answer.
    ///
    /// # Errors
    /// See [`Error`]; never `Failed`.
    pub async fn run_any(self, cancel: &CancellationToken) -> Result<Output, Error> {
        let program = self.program.to_string_lossy().into_owned();
        let describe = |span: &mut Span| span.rename(|| format!("run {program}"));
        around(Kind::Internal, "run", describe, Box::pin(self.run_to_end(cancel))).await
    }

    async fn run_to_end(self, cancel: &CancellationToken) -> Result<Output, Error> {
        let program = self.program.to_string_lossy().into_owned();
        let deadline = self.deadline.unwrap_or_else(|| Instant::now() + self.limit);
        tracing::debug!(command = %self, "runs a program");
        let mut child = self.start()?;
        let group = Group::of(&child);
        let input = self.stdin;
        let work = async {
            let mut stdin = child.stdin.take();
            let out = Capture::new(child.stdout.take(), MAX_STDOUT + 1);
            let err = Capture::new(child.stderr.take(), MAX_STDERR);
            let feed = async {
                if let (Some(pipe), Some(bytes)) = (stdin.as_mut(), input.as_deref()) {
                    // A program that does not read its input to the end has its reasons: its exit code tells.
                    let _ = pipe.write_all(bytes).await;
                }
                drop(stdin);
            };
            collect(&mut child, out, err, feed).await
        };
        let result = tokio::select! {
            result = work => result,
            () = cancel.cancelled() => return Err(Error::Cancelled { program }),
            () = tokio::time::sleep_until(deadline) => return Err(Error::Deadline { program }),
        };
        let (status, stdout, stderr) = result.map_err(|source| Error::Pipe { program: program.clone(), source })?;
        group.finished();
        if stdout.len() > MAX_STDOUT {
            return Err(Error::TooMuchOutput { program });
        }
        Ok(Output { code: status.code(), stdout, stderr })
    }

    /// Starts a program that puts itself into the background in a session of its own and writes its
    /// own pid file (dnsmasq does), and waits until its foreground part has ended well. It outlives
    /// the agent.
    ///
    /// # Errors
    /// See [`Error`]; `Failed` when the foreground part says that the daemon could not start.
    pub async fn spawn_daemon(self, cancel: &CancellationToken) -> Result<(), Error> {
        self.run(cancel).await.map(|_| ())
    }

    fn what(&self) -> String {
        let first = self.args.first().map(|a| format!(" {}", a.to_string_lossy())).unwrap_or_default();
        format!("{}{first}", self.program.to_string_lossy())
    }

    #[expect(clippy::disallowed_methods, reason = "this module is the one that may start processes")]
    fn start(&self) -> Result<Child, Error> {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.args)
            .env("LC_ALL", "C")
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command.spawn().map_err(|source| Error::Start { program: self.program.to_string_lossy().into_owned(), source })
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.to_string_lossy())?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", arg.to_string_lossy()))
    }
}

/// Reads output and waits for the end side by side, so that a full pipe never blocks the program.
async fn collect<O, E>(
    child: &mut Child,
    mut out: Capture<O>,
    mut err: Capture<E>,
    feed: impl Future<Output = ()>,
) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)>
where
    O: AsyncRead + Unpin,
    E: AsyncRead + Unpin,
{
    let status = {
        let pump = async { tokio::join!(out.pump(), err.pump(), feed) };
        tokio::pin!(pump);
        let wait = child.wait();
        tokio::pin!(wait);
        tokio::select! {
            _ = &mut pump => wait.await?,
            status = &mut wait => {
                // A daemon may have inherited the pipes and hold them open for ever.
                let _ = tokio::time::timeout(DRAIN, pump).await;
                status?
            }
        }
    };
    Ok((status, out.bytes, err.bytes))
}

/// Reads a pipe to its end and keeps the first `max` bytes.
struct Capture<R> {
    pipe: Option<R>,
    max: usize,
    bytes: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Capture<R> {
    fn new(pipe: Option<R>, max: usize) -> Self {
        Self { pipe, max, bytes: Vec::new() }
    }

    async fn pump(&mut self) {
        let Some(pipe) = self.pipe.as_mut() else { return };
        let mut buffer = vec![0; 8192];
        while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
            let room = self.max.saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(&buffer[..n.min(room)]);
        }
    }
}

/// Kills a program with everything it started, unless it has ended by itself.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended a moment ago: then there is nobody to kill.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cancel() -> CancellationToken {
        CancellationToken::new()
    }

    #[tokio::test]
    async fn output_and_exit_code_come_back() {
        let output = Cmd::new("sh").args(["-c", "cat; echo err >&2"]).stdin("hello").run(&cancel()).await.unwrap();
        assert_eq!((output.text().as_str(), output.stderr.as_slice()), ("hello", b"err\n".as_slice()));
        let error = Cmd::new("sh").args(["-c", "echo why >&2; exit 3"]).run(&cancel()).await.unwrap_err();
        assert_eq!(error.to_string(), "sh -c failed (exit code 3): why");
        let any = Cmd::new("sh").args(["-c", "exit 3"]).run_any(&cancel()).await.unwrap();
        assert_eq!(any.code, Some(3));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Cmd::new("no-such-program-of-kring").run(&cancel()).await.unwrap_err();
        let wire = WireError::from(error);
        assert_eq!(wire.code, Code::HostFailed);
        assert_eq!(wire.message, "the program no-such-program-of-kring is not installed on the host");
    }

    #[tokio::test]
    async fn a_deadline_and_a_cancellation_kill_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let token = cancel();
        let run = Cmd::new("sh").args(["-c", &script]).run(&token);
        let watch = async {
            loop {
                let pid = std::fs::read_to_string(&pid_file).ok().and_then(|s| s.trim().parse::<i32>().ok());
                if let Some(pid) = pid {
                    token.cancel();
                    return pid;
                }
                tokio::task::yield_now().await;
            }
        };
        let (result, pid) = tokio::join!(run, watch);
        assert!(matches!(result, Err(Error::Cancelled { .. })));
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z ")) {
            tokio::task::yield_now().await;
        }
        let late = Cmd::new("sleep").arg("1000").deadline(Instant::now()).run(&cancel()).await;
        assert!(matches!(late, Err(Error::Deadline { .. })));
    }

    #[tokio::test]
    async fn a_daemon_that_holds_the_pipes_does_not_hold_its_caller() {
        Cmd::new("sh").args(["-c", "sleep 3 & exit 0"]).spawn_daemon(&cancel()).await.unwrap();
    }

    #[tokio::test]
    async fn endless_output_is_refused_not_kept() {
        let error = Cmd::new("head").args(["-c", "9000000", "/dev/zero"]).run(&cancel()).await.unwrap_err();
        assert!(matches!(error, Error::TooMuchOutput { .. }));
    }

    #[test]
    fn a_full_disk_has_its_own_code() {
        let stderr = "qemu-img: write failed: No space left on device".to_string();
        let error = Error::Failed { what: "qemu-img create".into(), code: Some(1), stderr };
        assert_eq!(WireError::from(error).code, Code::NoSpace);
    }
}
