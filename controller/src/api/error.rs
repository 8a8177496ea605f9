//! Refusals: the one place where an error becomes an HTTP answer.
//!
//! Handlers, extractors and fallbacks answer a [`Failure`]; it carries the error on the response, and
//! [`render`] writes the body when the request leaves through [`super::front`], which knows the
//! request's id, whether the caller is an operator, and whether it is an agent:
//! - users read `application/problem+json` (RFC 9457); only operators see the operator's detail and
//!   what lies behind an internal error;
//! - agents read the plain [`shared::Error`], as their protocol says.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use shared::error::Problem;
use shared::{Code, Error};

/// Media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A request that is refused or failed.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: Error,
    /// When it is worth trying again, in seconds.
    pub retry_after_s: Option<u64>,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), retry_after_s: None }
    }
}

impl Failure {
    /// A refusal with this code and this sentence for the user.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error::new(code, message).into()
    }

    /// The same, worth trying again after some seconds.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

/// Rides on a response until [`render`] takes it.
#[derive(Clone, Debug)]
pub(super) struct Carried {
    pub(super) error: Box<Error>,
    retry_after_s: Option<u64>,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status(self.error.code);
        let carried = Carried { error: Box::new(self.error), retry_after_s: self.retry_after_s };
        response.extensions_mut().insert(carried);
        response
    }
}

/// Marks a response whose reader may know everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForOperator;

/// Who reads an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A user without special rights.
    Tenant,
    /// An admin.
    Operator,
    /// The agent of a host.
    Agent,
}

/// Writes the refusal that rides on `response`, if there is one, for its reader.
pub(super) fn render(response: Response, request_id: &str, reader: Reader) -> Response {
    let (mut parts, body) = response.into_parts();
    let Some(Carried { error, retry_after_s }) = parts.extensions.remove::<Carried>() else {
        return Response::from_parts(parts, body);
    };
    let code = error.code;
    let retry = retry_after_s.or(code.is_transient().then_some(1));
    if let Some(value) = retry.and_then(|seconds| HeaderValue::from_str(&seconds.to_string()).ok()) {
        parts.headers.insert(header::RETRY_AFTER, value);
    }
    if code == Code::Unauthenticated && reader != Reader::Agent {
        parts.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"kring\""));
    }
    parts.status = status(code);
    let (media_type, bytes) = match reader {
        Reader::Agent => ("application/json", json(&for_reader(*error, reader))),
        _ => (PROBLEM_JSON, json(&Problem::new(for_reader(*error, reader), request_id.to_string()))),
    };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    Response::from_parts(parts, Body::from(bytes))
}

/// Leaves out what the reader may not know.
fn for_reader(mut error: Error, reader: Reader) -> Error {
    let detail = error.detail.take();
    match reader {
        Reader::Operator => error.causes.extend(detail),
        // What lies behind an internal error may name other people's things.
        Reader::Tenant | Reader::Agent if matches!(error.code, Code::Internal | Code::Unknown) => error.causes.clear(),
        Reader::Tenant | Reader::Agent => {}
    }
    error
}

fn status(code: Code) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| br#"{"code":"internal","status":500}"#.to_vec())
}

/// Answers a path that does not exist.
pub(super) async fn no_such_path(uri: http::Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    Failure::new(Code::NotFound, format!("there is nothing at {path}: see /docs for what there is"))
}

/// Answers a method that a path does not have.
pub(super) async fn no_such_method(method: http::Method, uri: http::Uri) -> Failure {
    let path: String = uri.path().chars().take(200).collect();
    let method: String = method.as_str().chars().take(20).collect();
    Failure::new(Code::MethodNotAllowed, format!("{path} has no {method}: the header Allow names what it has"))
}
