//! From what a service answered to what a caller reads.

use std::fmt::Display;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use shared::Error;
use shared::api::job::{Job, JobRef};
use shared::api::page::{ListParams, Page};
use tokio::time::Instant;
use utoipa::PartialSchema;

use super::Api;
use super::error::Failure;
use super::extract::{Wait, fields};
use crate::bus::ApiRequest;
use crate::cx::Cx;
use crate::messages::job::WaitJob;

/// What a handler answers.
pub type Answer = Result<Response, Failure>;

/// `200` with a body.
pub fn ok(body: &impl Serialize) -> Answer {
    json_with(StatusCode::OK, body)
}

/// `204`.
pub fn no_content() -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// A new resource: `201` with its place, by the id that was answered: when the request was repeated,
/// that is the first one's. When nothing was made because it was a dry run, `200`.
pub fn created(cx: &Cx, collection: &str, id: impl Display, body: &impl Serialize) -> Answer {
    if cx.dry_run {
        return ok(body);
    }
    with_location(json_with(StatusCode::CREATED, body)?, &format!("/v1/{collection}/{id}"))
}

/// Accepted work: `202` with the place of the job; with `Prefer: wait`, `200` with the job when it
/// has ended in time.
pub async fn job(api: &Api, cx: &Cx, Wait(wait): Wait, job: JobRef) -> Answer {
    if cx.dry_run {
        return ok(&json!({"dry_run": true, "resource": job.resource}));
    }
    let id = job.job_id;
    if let Some(wait) = wait
        && let Ok(_place) = api.waits.try_acquire()
    {
        // The caller asked for this much time for the work, beside the time for accepting it.
        let mut waiting = cx.clone();
        waiting.deadline = Instant::now() + wait;
        // When it cannot be waited for, the work is accepted all the same.
        if let Ok(ended) = api.call(&waiting, WaitJob { id }).await
            && ended.state.is_final()
        {
            let mut response = with_location(ok(&ended)?, &format!("/v1/jobs/{id}"))?;
            if let Ok(applied) = HeaderValue::from_str(&format!("wait={}", wait.as_secs())) {
                response.headers_mut().insert("preference-applied", applied);
            }
            return Ok(response);
        }
    }
    with_location(json_with(StatusCode::ACCEPTED, &job)?, &format!("/v1/jobs/{id}"))
}

/// A job that was asked to stop: `202` until it has ended.
pub fn cancelled(job: &Job) -> Answer {
    let status = if job.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    with_location(json_with(status, job)?, &format!("/v1/jobs/{}", job.id))
}

/// A page of a list, with the fields that were asked for.
pub async fn list<M, T>(api: &Api, cx: &Cx, params: ListParams, message: impl FnOnce(ListParams) -> M) -> Answer
where
    M: ApiRequest<Reply = Page<T>>,
    T: Serialize + PartialSchema,
{
    let wanted = params.fields.clone();
    page(&api.call(cx, message(params)).await?, wanted.as_deref())
}

/// A page with the fields that were asked for; all of them when none were.
pub fn page<T: Serialize + PartialSchema>(page: &Page<T>, wanted: Option<&str>) -> Answer {
    let Some(wanted) = wanted else { return ok(page) };
    let wanted = fields(wanted)?;
    let known = properties(&serde_json::to_value(T::schema()).map_err(|e| unwritable(&e))?);
    if let Some(unknown) = wanted.iter().find(|name| !known.iter().any(|known| known == *name)) {
        let text = format!("there is no field {unknown:?} here: {}", known.join(", "));
        return Err(Error::invalid("fields", text).into());
    }
    let mut body = serde_json::to_value(page).map_err(|e| unwritable(&e))?;
    for item in body.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(fields) = item {
            fields.retain(|name, _| wanted.contains(&name.as_str()));
        }
    }
    ok(&body)
}

/// The names of an object's properties in its schema, with those that it takes over from others.
fn properties(schema: &Value) -> Vec<String> {
    let own = schema.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone());
    let taken_over = schema.get("allOf").and_then(Value::as_array).into_iter().flatten().flat_map(properties);
    own.chain(taken_over).collect()
}

fn json_with(status: StatusCode, body: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(body).map_err(|e| unwritable(&e))?;
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn with_location(mut response: Response, path: &str) -> Answer {
    let value = HeaderValue::from_str(path).map_err(Error::internal)?;
    response.headers_mut().insert(header::LOCATION, value);
    Ok(response)
}

fn unwritable(error: &serde_json::Error) -> Error {
    Error::internal(format_args!("an answer could not be written as JSON: {error}"))
}
