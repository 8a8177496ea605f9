//! Waiting for a job to end, through lost connections, until the user's patience ends.

use std::time::{Duration, Instant};

use shared::api::job::{Job, JobState};
use shared::error::Code;
use shared::id::JobId;

use crate::client::{Call, Client};
use crate::error::{CliError, Result};
use crate::input::duration_text;
use crate::progress::Progress;

/// How long the server holds a question for a job's end; also how often progress is renewed.
const POLL_S: u64 = 1;
/// How long a controller may be away (a restart, a move of the job) before waiting is given up.
const AWAY: Duration = Duration::from_secs(60);

/// Waits until the job ends, well or badly, and gives it as it ended.
pub async fn until_final(client: &Client, job: JobId, label: &str, since: Instant, timeout: Duration) -> Result<Job> {
    let mut progress = Progress::new(label, since);
    let interrupted = tokio::signal::ctrl_c();
    let result = tokio::select! {
        result = tokio::time::timeout(timeout.saturating_sub(since.elapsed()), follow(client, job, &mut progress)) => {
            match result {
                Ok(result) => result,
                Err(_) => Err(CliError::TimedOut { label: label.to_string(), after: duration_text(timeout), job }),
            }
        }
        _ = interrupted => Err(CliError::Interrupted { job: Some(job) }),
    };
    progress.finish();
    result
}

async fn follow(client: &Client, job: JobId, progress: &mut Progress) -> Result<Job> {
    let path = format!("/jobs/{job}");
    let mut away_since: Option<Instant> = None;
    loop {
        let asked = Instant::now();
        match client.send(Call::get(&path).wait(POLL_S)).await {
            Ok(reply) => {
                away_since = None;
                let job = read(reply.body)?;
                if job.state.is_final() {
                    return Ok(job);
                }
                progress.job(&job);
            }
            Err(error) if may_come_back(&error) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY {
                    return Err(error);
                }
                progress.trouble("the controller does not answer; the job goes on, trying again");
            }
            Err(error) => return Err(error),
        }
        // A server that does not hold the question must not be asked without end.
        tokio::time::sleep(Duration::from_secs(POLL_S).saturating_sub(asked.elapsed())).await;
    }
}

fn may_come_back(error: &CliError) -> bool {
    match error {
        CliError::Unreachable { .. } => true,
        CliError::Problem(problem) => {
            problem.code.is_transient() || (problem.code == Code::Unknown && problem.status >= 502)
        }
        _ => false,
    }
}

/// Reads a job from an answer.
pub fn read(body: serde_json::Value) -> Result<Job> {
    serde_json::from_value(body).map_err(|e| CliError::Protocol(format!("the server's job cannot be read: {e}")))
}

/// The failure that a job which ended badly is; nothing when it succeeded.
pub fn failure(job: &Job, label: &str) -> Option<CliError> {
    let message = match job.state {
        JobState::Succeeded => return None,
        JobState::Cancelled => format!("{label}: the job was cancelled"),
        _ => match &job.error {
            Some(error) => format!("{label}: {}", error.message),
            None => format!("{label}: the job {}", job.state),
        },
    };
    Some(CliError::JobFailed { message, job: Box::new(job.clone()) })
}
