//! `/docs`: the API and its errors, readable in a browser. Everything is embedded; nothing is loaded
//! from elsewhere, and the pages say so to the browser.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, header};
use shared::Code;

use super::Api;

const INDEX: &str = include_str!("docs/index.html");
const SCRIPT: &str = include_str!("docs/docs.js");
const STYLE: &str = include_str!("docs/docs.css");
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /docs`
pub async fn index() -> Response {
    page("text/html; charset=utf-8", INDEX)
}

/// `GET /docs/docs.js`
pub async fn script() -> Response {
    page("text/javascript; charset=utf-8", SCRIPT)
}

/// `GET /docs/docs.css`
pub async fn style() -> Response {
    page("text/css; charset=utf-8", STYLE)
}

/// `GET /docs/errors`
pub async fn errors() -> Response {
    page("text/html; charset=utf-8", errors_html())
}

/// `GET /v1/openapi.json`
pub async fn openapi(State(api): State<Arc<Api>>) -> Response {
    page("application/json", api.openapi.clone())
}

fn page(media_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
    response
}

/// What a user can do about an error with this code.
const fn advice(code: Code) -> &'static str {
    match code {
        Code::InvalidRequest => "Correct the fields that `errors` names, and send it again.",
        Code::Unauthenticated => "Send `Authorization: Bearer TOKEN` with a token that is not revoked or expired.",
        Code::Forbidden => "Ask an operator: the account of the token has not the right to do this.",
        Code::NotFound => "Check the id and the account. What belongs to another account is not found either.",
        Code::MethodNotAllowed => "Use one of the methods in the header `Allow`.",
        Code::Conflict => "The id is in use for something else: choose another id, or look at what is there.",
        Code::NameTaken => "Choose another name, or rename or remove what has it.",
        Code::InvalidState => "Look at the state of the resource and at its `links`: they say what is possible now.",
        Code::InUse => "Remove or detach what uses it first; the message names some of it.",
        Code::IdempotencyMismatch => "Use a new `Idempotency-Key` for every new request.",
        Code::NoHostFits => "Send it with `dry_run=true` to see why each host was dropped; free or add capacity.",
        Code::Exhausted => "Use another network or storage, or free some of it.",
        Code::QuotaExceeded => "Remove something, or ask an operator for a larger quota.",
        Code::TooLarge => "Send less; the message names the limit.",
        Code::UnsupportedMediaType => "Send JSON, with `Content-Type: application/json`.",
        Code::RateLimited => "Wait as long as `Retry-After` says, and send requests more slowly.",
        Code::DeadlineExceeded => {
            "Look whether it was done after all, then try again, with a longer `X-Kring-Timeout`."
        }
        Code::Cancelled => "Nothing: a user cancelled it, and what was begun is undone.",
        Code::HostUnreachable => "Try again; when it stays, an operator must look at the host and the way to it.",
        Code::HostFailed => "Read the causes; when they do not help, the agent's log on the host says more.",
        Code::StaleGeneration => "Send it again: another controller has taken over and will do it.",
        Code::ImageRejected => "Use an image that stands alone (no backing file), in qcow2 or raw, of an allowed size.",
        Code::ChecksumMismatch => "Check the URL and the checksum: one of them is not for this image.",
        Code::DownloadFailed => "Check that the hosts reach the URL and that it answers with the image.",
        Code::NoSpace => "An operator must make room, or use another storage.",
        Code::Unavailable => "Wait as long as `Retry-After` says, and send it again; or ask another controller.",
        Code::ServiceDisabled => "Ask the operator: `services.disabled` of the controller names the service.",
        Code::UnknownMessage => "Bring all controllers to the same version.",
        Code::OwnerLeft => "Send it again: the controller that worked on it is gone, another one takes over.",
        Code::Internal | Code::Unknown => {
            "Give the operator the `request_id`: the log says what happened. Please report it."
        }
    }
}

/// `docs/errors.md`: the contract of codes, checked in and compared by a test.
#[must_use]
pub fn errors_markdown() -> String {
    let mut text = String::from(
        "# Errors\n\n\
         Every refusal of the API is `application/problem+json` (RFC 9457). Programs read `code`, which never\n\
         changes its meaning; people read `detail` and `causes`. `request_id` leads an operator to the log.\n\n\
         Only what is no HTTP request at all, or has a head that is too large, is answered below the API:\n\
         `400` or `431` without a body, and the connection ends.\n\n\
         This page is made from the code (`shared/src/error.rs`): do not edit it.\n\n\
         | code | status | meaning | what to do |\n|---|---|---|---|\n",
    );
    for code in Code::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{code}` | {} | {} | {} |", code.status(), code.title(), advice(*code));
    }
    text
}

fn errors_html() -> String {
    let mut rows = String::new();
    for code in Code::ALL {
        let again = if code.is_transient() { " <span class=\"again\">worth trying again</span>" } else { "" };
        let _ = write!(
            rows,
            "<section class=\"error\" id=\"{code}\"><h2><code>{code}</code> <span class=\"status\">{}</span>{again}</h2>\
             <p>{}.</p><p>{}</p></section>",
            code.status(),
            code.title(),
            marked(advice(*code)),
        );
    }
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Errors – Kring</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"stylesheet\" href=\"/docs/docs.css\"></head>\
         <body class=\"errors\"><main><p><a href=\"/docs\">API</a></p><h1>Errors</h1>\
         <p>Every refusal is <code>application/problem+json</code>. Programs read <code>code</code>, which never \
         changes its meaning; people read <code>detail</code> and <code>causes</code>; <code>request_id</code> leads \
         an operator to the log.</p>{rows}</main></body></html>"
    )
}

/// Text of ours with `code` in backquotes, as HTML.
fn marked(text: &str) -> String {
    let mut html = String::new();
    for (i, piece) in text.split('`').enumerate() {
        let piece = piece.replace('&', "&amp;").replace('<', "&lt;");
        if i % 2 == 1 {
            let _ = write!(html, "<code>{piece}</code>");
        } else {
            html.push_str(&piece);
        }
    }
    html
}
