//! What every request goes through, outermost: its id, load shedding, panics, the final form of
//! errors, one log event, figures.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use shared::id::HostId;
use shared::wire::HEADER_TRACEPARENT;
use shared::{Code, Error};
use trace::{Kind, Scope, Span};
use uuid::Uuid;

use super::Api;
use super::error::{Carried, Failure, ForOperator, Reader, render};
use super::linger;
use crate::cx::Trace;

/// Names the request, in logs and answers.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where a request comes from; the listener puts it on every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The address of the other end of the connection.
    pub address: IpAddr,
    /// The host that its certificate is for.
    pub host: Option<HostId>,
}

/// What a request is called and which trace it is a part of.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its id.
    pub request_id: Arc<str>,
    /// Its trace.
    pub trace: Trace,
}

impl Named {
    fn of(headers: &HeaderMap, span: &Span) -> Self {
        let sane = |id: &&str| {
            (1..=128).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(sane);
        let request_id = match given {
            Some(id) => Arc::from(id),
            None => Arc::from(&*Uuid::now_v7().hyphenated().encode_lower(&mut Uuid::encode_buffer())),
        };
        Self { request_id, trace: span.trace() }
    }
}

/// Runs a request and finishes its answer.
pub async fn front(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let caller = request.headers().get(HEADER_TRACEPARENT).and_then(|header| header.to_str().ok());
    let mut span = Span::root(caller.and_then(Trace::parse), Kind::Server, "request");
    let named = Named::of(request.headers(), &span);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let path = route.as_ref().map_or("(none)", MatchedPath::as_str);
    let method = request.method().clone();
    let is_agent = request.uri().path().starts_with("/agent/");
    let head = Head { method, route: path, named: &named, peer: request.extensions().get::<Peer>().copied() };
    request.extensions_mut().insert(named.clone());
    let rest = linger::lend(&mut request);
    // Whoever asks whether the process is well must hear it also under load.
    let is_probe = matches!(path, "/healthz" | "/readyz" | "/metrics");
    let place = if is_probe { None } else { Some(api.in_flight.try_acquire()) };
    let response = match place {
        Some(Err(_)) => too_busy().into_response(),
        _ => {
            let handling = AssertUnwindSafe(next.run(request)).catch_unwind();
            let handled = trace::within(Arc::clone(&named.request_id), named.trace, handling).await;
            handled.unwrap_or_else(|_| {
                tracing::error!(request.id = %named.request_id, http.route = path, "a request handler panicked");
                Failure::from(Error::internal("a request handler panicked")).into_response()
            })
        }
    };
    if let Some(rest) = rest.filter(|_| !response.status().is_success()) {
        rest.discard().await;
    }
    let carried = response.extensions().get::<Carried>().cloned();
    let reader = match response.extensions().get::<ForOperator>() {
        _ if is_agent => Reader::Agent,
        Some(ForOperator) => Reader::Operator,
        None => Reader::Tenant,
    };
    let mut response = render(response, &named.request_id, reader);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&named.request_id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Ok(trace) = HeaderValue::from_str(&named.trace.header()) {
        headers.insert(HEADER_TRACEPARENT, trace);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let took = started.elapsed();
    api.metrics.request(path, response.status().as_u16(), took);
    let error = carried.as_ref().map(|carried| &*carried.error);
    head.describe(&mut span, response.status(), error);
    let scope = Scope { request_id: Arc::clone(&named.request_id), trace: named.trace };
    trace::scope::at_once(scope, || head.log(response.status(), took, error));
    if is_probe {
        span.forget();
    }
    response
}

fn too_busy() -> Failure {
    Failure::new(Code::Unavailable, "too many requests are being worked on: try again in a moment").retry_after(1)
}

/// What a log line says of a request.
struct Head<'a> {
    method: Method,
    route: &'a str,
    named: &'a Named,
    peer: Option<Peer>,
}

impl Head<'_> {
    fn describe(&self, span: &mut Span, status: StatusCode, error: Option<&Error>) {
        span.rename(|| format!("{} {}", self.method, self.route));
        span.set("http.request.method", self.method.as_str());
        span.set("http.route", self.route);
        span.set("http.response.status_code", i64::from(status.as_u16()));
        span.set("kring.request.id", &*self.named.request_id);
        if let Some(error) = error.filter(|_| status.is_server_error()) {
            span.fail(error);
        }
    }

    /// One event for each request: a defect is an error, a refusal and a change are information, a
    /// read that went well is detail.
    fn log(&self, status: StatusCode, took: Duration, error: Option<&Error>) {
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    http.method = %self.method,
                    http.route = self.route,
                    http.status = status.as_u16(),
                    client = self.peer.map(|peer| tracing::field::display(peer.address)),
                    took_ms = took.as_millis() as u64,
                    error = error.map(Error::chain),
                    detail = error.and_then(|error| error.detail.as_deref()),
                    "request"
                )
            };
        }
        match error.map(|error| error.code) {
            Some(Code::Internal | Code::Unknown) => event!(error),
            Some(_) => event!(info),
            None if self.method.is_safe() => event!(debug),
            // Hosts speak all the time; what they say is logged by those who act on it.
            None if self.route.starts_with("/agent/") => event!(debug),
            None => event!(info),
        }
    }
}
