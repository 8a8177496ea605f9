//! From the head of a request to its [`Cx`]: deadline, idempotency, dry run.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::extract::{MatchedPath, Query};
use bytes::Bytes;
use http::{HeaderMap, Uri};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use sha2::{Digest as _, Sha256};
use shared::{Code, Error};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::error::Failure;
use super::front::Named;
use crate::auth::token::hex;
use crate::config::ApiConfig;
use crate::cx::{Caller, Cx, Idempotency};

/// Seconds that the caller is willing to wait.
pub const TIMEOUT: &str = "x-kring-timeout";
/// The caller's promise that two requests are one.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The route whose body is not JSON and may be very long.
pub const CONTENT_ROUTE: &str = "/v1/images/{id}/content";

/// Puts the [`Cx`] of a request on it.
pub(super) async fn with_cx(api: &Api, request: Request, named: &Named, caller: Caller) -> Result<Request, Failure> {
    let deadline = Instant::now() + timeout(request.headers(), &api.config.api)?;
    let key = idempotency_key(request.headers())?;
    let dry_run = !request.method().is_safe() && dry_run(request.uri())?;
    let streams = request.extensions().get::<MatchedPath>().is_some_and(|path| path.as_str() == CONTENT_ROUTE);
    let (idempotency, mut request) = match key {
        Some(key) if !request.method().is_safe() && !streams => {
            let (parts, body) = request.into_parts();
            let body = read_body(body, &parts.headers, api.config.api.max_body_bytes(), deadline).await?;
            let mut hash = Sha256::new();
            hash.update(parts.method.as_str());
            hash.update(b"\0");
            hash.update(parts.uri.path_and_query().map_or("", |path| path.as_str()));
            hash.update(b"\0");
            hash.update(&body);
            let idempotency = Idempotency { key, request_hash: hex(&hash.finalize()) };
            (Some(Arc::new(idempotency)), Request::from_parts(parts, Body::from(body)))
        }
        _ => (None, request),
    };
    let request_id = Arc::clone(&named.request_id);
    request.extensions_mut().insert(Cx {
        caller,
        deadline,
        request_id,
        trace: named.trace,
        idempotency,
        dry_run,
        cancelled: CancellationToken::new(),
    });
    Ok(request)
}

fn timeout(headers: &HeaderMap, config: &ApiConfig) -> Result<Duration, Error> {
    let Some(given) = headers.get(TIMEOUT) else { return Ok(config.timeout()) };
    let seconds: Option<usize> = given.to_str().ok().and_then(|text| text.trim().parse().ok());
    match seconds {
        Some(seconds) if (1..=config.max_timeout_s).contains(&seconds) => Ok(Duration::from_secs(seconds as u64)),
        _ => Err(Error::invalid(
            "X-Kring-Timeout",
            format!("must be a whole number of seconds, 1 to {}", config.max_timeout_s),
        )),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(given) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match given.to_str() {
        Ok(key) if (1..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(key.to_string()))
        }
        _ => Err(Error::invalid("Idempotency-Key", "must be 1 to 128 visible ASCII characters, such as a UUID")),
    }
}

/// Requests that change something have one query parameter, `dry_run`.
fn dry_run(uri: &Uri) -> Result<bool, Error> {
    let mut dry_run = false;
    for (key, value) in pairs(uri)? {
        match (key.as_str(), value.as_str()) {
            ("dry_run", "true") => dry_run = true,
            ("dry_run", "false") => dry_run = false,
            ("dry_run", _) => return Err(Error::invalid("dry_run", "must be true or false")),
            (other, _) => return Err(unknown_parameter(other, "dry_run")),
        }
    }
    Ok(dry_run)
}

/// The query parameters of a request.
pub(super) fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, Error> {
    if uri.query().is_none() {
        return Ok(Vec::new());
    }
    let Query(pairs) = Query::try_from_uri(uri).map_err(|_| {
        Error::new(
            Code::InvalidRequest,
            "the query parameters could not be read: encode them as a form (%20 for a space)",
        )
    })?;
    Ok(pairs)
}

/// Refuses a query parameter that does not exist.
pub(super) fn unknown_parameter(name: &str, known: &str) -> Error {
    let name: String = name.chars().take(80).collect();
    Error::invalid(name, format!("there is no such query parameter here: give {known}"))
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read_body(
    body: Body,
    headers: &HeaderMap,
    limit: usize,
    deadline: Instant,
) -> Result<Bytes, Error> {
    let too_large = || Error::new(Code::TooLarge, format!("the body is larger than {limit} bytes"));
    let announced =
        headers.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    match timeout_at(deadline, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Error::new(Code::InvalidRequest, "the body could not be read to its end")
                .with_detail(error.to_string()))
        }
        Err(_) => Err(Error::new(Code::DeadlineExceeded, "the body did not come in time")),
    }
}
