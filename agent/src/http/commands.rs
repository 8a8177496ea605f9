//! Commands and tasks: a command that is quick is answered with its outcome, another one with `202`.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use shared::id::TaskId;
use shared::time::Timestamp;
use shared::wire::{
    Empty, HEADER_AGENT, HEADER_CALLBACK, HEADER_DEADLINE, HEADER_GENERATION, HEADER_REQUEST_ID, HEADER_SEQUENCE,
    HEADER_TASK, HEADER_TIME_LEFT, HEADER_TRACEPARENT, other_agent,
};
use shared::{Code, Error, Result};
use tokio::time::Instant;
use trace::Scope;

use super::{Answer, give, json, refuse};
use crate::app::App;
use crate::ops;
use crate::task::{Entry, Order};

/// A controller does not wait longer than this for an answer, whatever is configured.
const MAX_QUICK: Duration = Duration::from_secs(10);
/// The farthest deadline that is kept to.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Runs a command, or finds the task that it already is.
pub(super) async fn run(app: &Arc<App>, path: &str, headers: &HeaderMap, body: &[u8]) -> Answer {
    if !meant(app, headers) {
        return meant_for_another(app);
    }
    let submitted = order(headers, Timestamp::now()).and_then(|order| {
        let prepared = ops::prepare(path, body)?;
        app.tasks.submit(app, order, prepared)
    });
    match submitted {
        Ok(entry) => {
            let quick = Duration::from_millis(app.config.agent.quick_ms).min(MAX_QUICK);
            match entry.outcome_by(Instant::now() + quick).await {
                Some(outcome) => give(outcome),
                None => json(StatusCode::ACCEPTED, &Empty {}),
            }
        }
        Err(error) => refuse(&error),
    }
}

/// Whether a command is for this process of the agent. What was sent to the one before may have been on its way
/// since long ago, and this one does not know what has been done about its resource since.
fn meant(app: &App, headers: &HeaderMap) -> bool {
    headers.get(HEADER_AGENT).is_none_or(|id| id.as_bytes() == app.agent_id.to_string().as_bytes())
}

fn meant_for_another(app: &App) -> Answer {
    let mut answer = refuse(&other_agent());
    *answer.status_mut() = StatusCode::PRECONDITION_FAILED;
    if let Ok(id) = app.agent_id.to_string().parse() {
        answer.headers_mut().insert(HEADER_AGENT, id);
    }
    answer
}

/// How far a task is.
pub(super) fn look(app: &App, id: &str) -> Answer {
    give(find(app, id).map(|entry| entry.report()))
}

/// Cancels a task, unless a newer generation than that of the request has asked for it since.
pub(super) fn cancel(app: &App, id: &str, headers: &HeaderMap) -> Answer {
    let generation = headers.get(HEADER_GENERATION).and_then(|v| v.to_str().ok()).and_then(|t| t.parse().ok());
    match find(app, id).and_then(|entry| app.tasks.cancel(&entry, generation)) {
        Ok(()) => json(StatusCode::ACCEPTED, &Empty {}),
        Err(error) => refuse(&error),
    }
}

fn find(app: &App, id: &str) -> Result<Arc<Entry>> {
    let id: TaskId = id.parse().map_err(|e: shared::id::InvalidId| Error::new(Code::InvalidRequest, e.to_string()))?;
    app.tasks.get(id).ok_or_else(|| Error::not_found("task", id))
}

/// The conditions of a command, from its headers.
fn order(headers: &HeaderMap, now: Timestamp) -> Result<Order> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let number = |name: &str| {
        let parsed = text(name).and_then(|t| t.parse::<u64>().ok());
        parsed.ok_or_else(|| Error::invalid(name, "must be a decimal number"))
    };
    let task_id = text(HEADER_TASK)
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::invalid(HEADER_TASK, "must be the UUID of the task"))?;
    let callback = text(HEADER_CALLBACK).map(str::to_string);
    if callback.as_deref().is_some_and(|url| !url.starts_with("https://")) {
        return Err(Error::invalid(HEADER_CALLBACK, "must be an https:// address"));
    }
    let left = match text(HEADER_TIME_LEFT) {
        Some(_) => number(HEADER_TIME_LEFT)?,
        // A controller that does not say how long, only until when.
        None => number(HEADER_DEADLINE)?.saturating_sub(u64::try_from(now.ms()).unwrap_or(0)),
    };
    let deadline = Instant::now() + Duration::from_millis(left).min(MAX_DEADLINE);
    let scope = Scope::read(text(HEADER_REQUEST_ID), text(HEADER_TRACEPARENT));
    let sequence = text(HEADER_SEQUENCE).and_then(|t| t.parse().ok());
    Ok(Order { task_id, callback, generation: number(HEADER_GENERATION)?, sequence, deadline, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(k, v)| (http::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    #[test]
    fn a_command_needs_its_task_generation_and_deadline() {
        let id = TaskId::new().to_string();
        let full = [(HEADER_TASK, id.as_str()), (HEADER_GENERATION, "7"), (HEADER_DEADLINE, "61000")];
        let taken = order(&headers(&full), Timestamp(1000)).unwrap();
        assert_eq!((taken.generation, taken.callback), (7, None));
        assert!(taken.deadline <= Instant::now() + Duration::from_secs(60));
        for missing in 0..3 {
            let mut some = full.to_vec();
            let (name, _) = some.remove(missing);
            let error = order(&headers(&some), Timestamp(0)).unwrap_err();
            assert_eq!((error.code, error.fields[0].field.as_str()), (Code::InvalidRequest, name));
        }
    }

    #[test]
    fn time_left_counts_whatever_the_clocks_say() {
        let id = TaskId::new().to_string();
        let list = [(HEADER_TASK, id.as_str()), (HEADER_GENERATION, "1"), (HEADER_TIME_LEFT, "60000")];
        let hour = 3_600_000_i64;
        for now in [0, hour, 20 * hour] {
            let deadline = order(&headers(&list), Timestamp(now)).unwrap().deadline;
            assert!(
                deadline > Instant::now() + Duration::from_secs(50)
                    && deadline <= Instant::now() + Duration::from_secs(60)
            );
        }
    }

    #[test]
    fn a_far_deadline_is_bounded_and_a_plain_callback_refused() {
        let id = TaskId::new().to_string();
        let far = u64::MAX.to_string();
        let mut list = vec![(HEADER_TASK, id.as_str()), (HEADER_GENERATION, "0"), (HEADER_DEADLINE, far.as_str())];
        assert!(order(&headers(&list), Timestamp(0)).unwrap().deadline <= Instant::now() + MAX_DEADLINE);
        list.push((HEADER_CALLBACK, "http://10.0.0.1/agent/v1/callbacks/x"));
        assert_eq!(order(&headers(&list), Timestamp(0)).unwrap_err().fields[0].field, HEADER_CALLBACK);
    }
}
