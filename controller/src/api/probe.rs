//! `/healthz`, `/readyz`, `/metrics`: for supervisors and monitoring.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, header};
use serde_json::json;
use shared::api::account::AccountKind;
use shared::{Code, Error};

use super::error::Failure;
use super::front::{Named, Peer};
use super::reply::{self, Answer};
use super::{Api, authn, figures};

/// How long the database may take before this controller counts as not ready.
const ASK: Duration = Duration::from_secs(2);

/// The process lives. Says nothing about whether it can work.
pub async fn healthz() -> &'static str {
    "alive\n"
}

/// Whether this controller can be used; when not, why. Also how the message broker is: `none`,
/// `connected`, `blocked` or `away`.
pub async fn readyz(State(api): State<Arc<Api>>) -> Answer {
    let mut reasons = api.not_ready.load().to_vec();
    if api.stop.is_cancelled() {
        reasons.push("it is stopping".to_string());
    }
    match tokio::time::timeout(ASK, api.db.read()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => reasons.push(Error::from(error).message),
        Err(_) => reasons.push("the database does not answer".to_string()),
    }
    match reasons.is_empty() {
        // Without the broker, what this controller owns goes on and what others own waits for it: no other
        // controller would do better, so nobody needs to be sent elsewhere.
        true => reply::ok(&json!({"ready": true, "broker": api.bus.transport().health().state()})),
        false => Err(Failure::new(Code::Unavailable, format!("not ready: {}", reasons.join("; ")))),
    }
}

/// Figures for Prometheus: to this machine, and to admins.
pub async fn metrics(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let (named, peer) = (request.extensions().get::<Named>(), request.extensions().get::<Peer>());
    let (Some(named), Some(peer)) = (named, peer) else {
        return Err(Error::internal("a request without a peer").into());
    };
    if !peer.address.to_canonical().is_loopback() {
        let identity = authn::identify(&api, request.headers(), named, peer.address).await?;
        if identity.kind != AccountKind::Admin {
            return Err(Failure::new(Code::Forbidden, "only an admin account may read the figures from outside"));
        }
    }
    figures::refresh(&api);
    let mut response = Response::new(api.metrics.render().into());
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}
