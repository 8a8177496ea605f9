//! What can go wrong for a user of the command line, how it is told and the exit code that says it.
//!
//! Every failure ends here and nowhere else: one sentence, the causes, and what to do next.

use std::fmt::Write as _;

use serde_json::json;
use shared::error::{Code, Problem};
use shared::id::JobId;

use crate::cli::Format;
use crate::output::plain;

/// Result of everything in this program.
pub type Result<T, E = CliError> = std::result::Result<T, E>;

/// The exit codes, as `kring --help` lists them.
pub mod exit {
    /// The work failed, or something on this machine did.
    pub const FAILED: i32 = 1;
    /// The arguments or the request are not valid.
    pub const USAGE: i32 = 2;
    /// There is no such thing.
    pub const NOT_FOUND: i32 = 3;
    /// The state of things does not allow it, or a name is taken or ambiguous.
    pub const CONFLICT: i32 = 4;
    /// The controller cannot be reached, or does not let us in.
    pub const UNREACHABLE: i32 = 5;
    /// The work was not done in time; it may go on.
    pub const TIMED_OUT: i32 = 6;
    /// Ctrl-C.
    pub const INTERRUPTED: i32 = 130;
}

/// A failure that ends the program.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments make no sense together, or a file given in them does not.
    #[error("{0}")]
    Usage(String),
    /// The configuration cannot be used.
    #[error("{message}")]
    Config { message: String, hint: String },
    /// No controller is configured.
    #[error("no controller is configured")]
    NotLoggedIn,
    /// No resource has the name.
    #[error("there is no {noun} {name}")]
    NoSuchName { noun: &'static str, command: &'static str, name: String },
    /// Several resources have the name.
    #[error("{} {noun}s are named {name}", .candidates.len())]
    Ambiguous { noun: &'static str, name: String, candidates: Vec<String> },
    /// Something on this side says no before the server is asked.
    #[error("{message}")]
    Conflict { message: String, hint: String },
    /// The server answered with an error.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// The server's answer is not one of Kring's.
    #[error("{0}")]
    Protocol(String),
    /// No controller could be reached: the addresses that were tried, and why each did not answer.
    #[error("{}", unreachable(.tried))]
    Unreachable { tried: Vec<(String, Vec<String>)>, hint: Option<String> },
    /// A job ended badly.
    #[error("{message}")]
    JobFailed { message: String, job: Box<shared::api::job::Job> },
    /// A job did not end in the time the user gave.
    #[error("{label} is not finished after {after}; the job goes on")]
    TimedOut { label: String, after: String, job: JobId },
    /// The user pressed Ctrl-C while a job was waited for, or before the answer came.
    #[error("{}", if .job.is_some() { "stopped waiting; the job goes on" } else { "stopped" })]
    Interrupted { job: Option<JobId> },
    /// Some of several things failed; each was told of already.
    #[error("")]
    Several { code: i32 },
    /// Something on this machine failed.
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    /// Whoever read our output has left.
    #[error("")]
    PipeClosed,
}

impl From<std::io::Error> for CliError {
    fn from(source: std::io::Error) -> Self {
        Self::io("something on this machine failed", source)
    }
}

impl CliError {
    /// An error of the operating system, with what was being done.
    pub fn io(doing: impl Into<String>, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::PipeClosed;
        }
        Self::Io { doing: doing.into(), source }
    }

    /// The exit code that tells a script what happened.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Usage(_) | Self::Config { .. } => exit::USAGE,
            Self::NoSuchName { .. } => exit::NOT_FOUND,
            Self::Ambiguous { .. } | Self::Conflict { .. } => exit::CONFLICT,
            Self::NotLoggedIn | Self::Unreachable { .. } | Self::Protocol(_) => exit::UNREACHABLE,
            Self::Problem(problem) => of_code(problem.code, problem.status),
            Self::JobFailed { .. } | Self::Io { .. } => exit::FAILED,
            Self::TimedOut { .. } => exit::TIMED_OUT,
            Self::Interrupted { .. } => exit::INTERRUPTED,
            Self::Several { code } => *code,
            Self::PipeClosed => 0,
        }
    }

    /// The error as it is written to standard error: text for people, JSON for `-o json`.
    pub fn render(&self, format: Format) -> String {
        match (self, format) {
            (Self::PipeClosed | Self::Several { .. }, _) => String::new(),
            (_, Format::Json) => self.to_json(),
            _ => self.to_text(),
        }
    }

    fn to_text(&self) -> String {
        let what = if matches!(self, Self::Interrupted { .. }) { "" } else { "error: " };
        let mut text = format!("{what}{}", plain(&self.to_string()));
        for cause in self.causes() {
            let _ = write!(text, "\n  because: {}", plain(&cause));
        }
        match self {
            Self::Problem(problem) => {
                for field in &problem.errors {
                    let _ = write!(text, "\n  {}: {}", plain(&field.field), plain(&field.message));
                }
                if !problem.request_id.is_empty() {
                    let _ = write!(text, "\n  request: {}", plain(&problem.request_id));
                }
            }
            Self::JobFailed { job, .. } => {
                if let Some(step) = &job.step {
                    let _ = write!(text, "\n  step: {}", plain(step));
                }
                if !job.rolled_back.is_empty() {
                    let _ = write!(text, "\n  undone: {}", plain(&job.rolled_back.join(", ")));
                }
                if !job.cleanup_owed.is_empty() {
                    let _ = write!(text, "\n  still being undone: {}", plain(&job.cleanup_owed.join(", ")));
                }
                let _ = write!(text, "\n  job: {}", job.id);
            }
            Self::Ambiguous { candidates, .. } => {
                for candidate in candidates {
                    let _ = write!(text, "\n  {}", plain(candidate));
                }
            }
            _ => {}
        }
        if let Some(hint) = self.hint() {
            let _ = write!(text, "\n  hint: {}", hint.replace('\n', "\n        "));
        }
        text
    }

    fn to_json(&self) -> String {
        let (code, fields, request) = match self {
            Self::Problem(problem) => (problem.code.as_str(), json!(problem.errors), Some(&problem.request_id)),
            Self::JobFailed { job, .. } => {
                (job.error.as_ref().map_or("internal", |e| e.code.as_str()), json!([]), Some(&job.request_id))
            }
            other => (other.word(), json!([]), None),
        };
        let job = match self {
            Self::JobFailed { job, .. } => Some(job.id),
            Self::TimedOut { job, .. } => Some(*job),
            Self::Interrupted { job } => *job,
            _ => None,
        };
        json!({
            "error": {
                "code": code,
                "message": self.to_string(),
                "causes": self.causes(),
                "fields": fields,
                "request_id": request,
                "job_id": job,
                "hint": self.hint(),
                "exit_code": self.exit_code(),
            }
        })
        .to_string()
    }

    /// A word for programs where the server gave no code.
    fn word(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::Config { .. } => "config",
            Self::NotLoggedIn => "not_logged_in",
            Self::NoSuchName { .. } => "not_found",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Conflict { .. } => "invalid_state",
            Self::Problem(_) | Self::JobFailed { .. } | Self::Several { .. } | Self::PipeClosed => "internal",
            Self::Protocol(_) => "protocol",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Interrupted { .. } => "interrupted",
            Self::Io { .. } => "io",
        }
    }

    fn causes(&self) -> Vec<String> {
        match self {
            Self::Problem(problem) => problem.causes.clone(),
            Self::Unreachable { tried, .. } => match tried.as_slice() {
                [(_, causes)] => causes.clone(),
                several => several.iter().map(|(url, causes)| format!("{url}: {}", causes.join(": "))).collect(),
            },
            Self::JobFailed { job, .. } => job.error.as_ref().map(|e| e.causes.clone()).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// What to do next.
    fn hint(&self) -> Option<String> {
        match self {
            Self::Config { hint, .. } | Self::Conflict { hint, .. } => Some(hint.clone()),
            Self::NotLoggedIn => Some(
                "give --controller, --ca and --token (or KRING_URL, KRING_CA and KRING_TOKEN), or save them once: \
                 kring login --url https://ADDRESS:PORT --ca ca.pem --token-stdin"
                    .to_string(),
            ),
            Self::NoSuchName { command, .. } => Some(format!("see what there is: kring {command} list")),
            Self::Ambiguous { .. } => Some("give the id instead of the name".to_string()),
            Self::Problem(problem) => of_problem(problem.code).map(str::to_string),
            Self::Protocol(_) => {
                Some("is this URL a Kring controller's? Run again with --verbose to see the requests".to_string())
            }
            Self::Unreachable { hint, .. } => hint.clone().or_else(|| {
                Some(
                    "is the controller running there? Try: kring status --controller URL, or another --context"
                        .to_string(),
                )
            }),
            Self::JobFailed { job, .. } => match job.error.as_ref().and_then(|e| of_problem(e.code)) {
                Some(hint) => Some(hint.to_string()),
                None => Some(format!("see the whole job: kring job show {}", job.id)),
            },
            Self::TimedOut { job, .. } | Self::Interrupted { job: Some(job) } => {
                Some(format!("kring job wait {job}    waits on\nkring job cancel {job}  cancels it"))
            }
            Self::Interrupted { job: None } => {
                Some("a change that was sent already may go on: kring job list".to_string())
            }
            _ => None,
        }
    }
}

fn unreachable(tried: &[(String, Vec<String>)]) -> String {
    let urls: Vec<&str> = tried.iter().map(|(url, _)| url.as_str()).collect();
    match urls.as_slice() {
        [url] => format!("cannot reach the controller at {url}"),
        several => format!("cannot reach any controller; tried {}", several.join(", ")),
    }
}

/// The exit code for an error answer.
fn of_code(code: Code, status: u16) -> i32 {
    match code {
        Code::NotFound => exit::NOT_FOUND,
        Code::Conflict
        | Code::NameTaken
        | Code::InvalidState
        | Code::InUse
        | Code::IdempotencyMismatch
        | Code::StaleGeneration => exit::CONFLICT,
        Code::InvalidRequest | Code::TooLarge => exit::USAGE,
        Code::Unauthenticated | Code::Forbidden | Code::Unavailable | Code::OwnerLeft | Code::RateLimited => {
            exit::UNREACHABLE
        }
        Code::DeadlineExceeded => exit::TIMED_OUT,
        Code::Unknown if status == 404 => exit::NOT_FOUND,
        Code::Unknown if status == 409 => exit::CONFLICT,
        _ => exit::FAILED,
    }
}

/// What a user can do about a kind of error.
fn of_problem(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Unauthenticated => {
            "the token is missing, wrong or expired; log in again: kring login --url URL --ca ca.pem --token-stdin"
        }
        Code::Forbidden => "use a token that may do this (another --context), or ask an administrator",
        Code::NotFound => "it may be gone, or belong to another account; the noun's list shows what there is",
        Code::NameTaken | Code::Conflict => "choose another name, or show the one that has it",
        Code::InvalidState => "show it to see its state and what can be done with it now",
        Code::InUse => "show it to see what uses it, and detach or delete that first",
        Code::NoHostFits => "add --dry-run to see why each host was dropped; kring host list --full shows what is free",
        Code::Exhausted => "kring status shows what is left; free something or add more",
        Code::QuotaExceeded => "delete what is not needed, or ask an administrator for more",
        Code::RateLimited | Code::Unavailable | Code::OwnerLeft => "try again in a moment",
        Code::ServiceDisabled => "kring service list shows what is switched off; ask an administrator",
        Code::DeadlineExceeded => "see whether it was done after all: kring job list",
        Code::HostUnreachable => "kring host list shows which hosts answer; try again when it is back",
        Code::HostFailed | Code::Internal => "the operator finds more in the controller's log by the request id",
        Code::ImageRejected => "give a plain qcow2 or raw disk image without a backing file",
        Code::ChecksumMismatch => "compare the checksum with the publisher's, and download again",
        Code::DownloadFailed => {
            "can the controller and its hosts open the URL? Or send a file: kring image create --file"
        }
        Code::NoSpace => "free space on the host's storage, or choose another host",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::Error;

    #[test]
    fn a_problem_is_told_with_causes_fields_request_and_hint() {
        let mut error = Error::new(Code::NameTaken, "a vm named web exists").during("could not create the vm");
        error.fields.push(shared::error::FieldError { field: "name".into(), message: "is in use".into() });
        let error = CliError::Problem(Box::new(Problem::new(error, "req-1".into())));
        assert_eq!(error.exit_code(), exit::CONFLICT);
        insta::assert_snapshot!(error.render(Format::Table), @r"
        error: could not create the vm
          because: a vm named web exists
          name: is in use
          request: req-1
          hint: choose another name, or show the one that has it
        ");
        let json: serde_json::Value = serde_json::from_str(&error.render(Format::Json)).unwrap();
        assert_eq!(json["error"]["code"], "name_taken");
        assert_eq!(json["error"]["exit_code"], 4);
    }

    #[test]
    fn every_code_has_an_exit_code_of_the_list() {
        for code in Code::ALL {
            assert!((1..=6).contains(&of_code(*code, code.status())), "{code}");
        }
    }

    #[test]
    fn text_from_the_server_cannot_drive_the_terminal() {
        let error = CliError::Problem(Box::new(Problem::new(
            Error::new(Code::Internal, "evil \u{1b}]0;title\u{7}"),
            "r".into(),
        )));
        assert!(!error.render(Format::Table).contains('\u{1b}'));
    }
}
