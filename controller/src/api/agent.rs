//! `/agent/v1`: what agents ask and tell.
//!
//! Who speaks is decided by the client certificate alone: a host reports only on itself. Only a join
//! comes without one; its one-time token is the service's to check. Errors are plain
//! [`shared::Error`]s, as the agent protocol says.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::response::Response;
use http::request::Parts;
use serde::de::DeserializeOwned;
use shared::id::{HostId, ImageId, TaskId};
use shared::wire::TaskReport;
use shared::wire::event::AgentEvents;
use shared::wire::host::{Join, Renew};
use shared::{Code, Error};
use tokio::time::Instant;

use super::Api;
use super::context::read_body;
use super::error::Failure;
use super::extract::Id;
use super::front::{Named, Peer};
use super::image_content;
use super::reply::{self, Answer};
use crate::cx::Cx;
use crate::messages::host::{GetHost, HostEvents, JoinHost, RenewHost};

/// Largest body of an agent: the inventory of a large host.
const MAX_BODY: usize = 16 << 20;

/// Takes reports of tasks to whoever waits for them.
pub trait CallbackSink: Send + Sync {
    /// Hands over a report that `host` sent. False when nobody waits for it, or not from that host.
    fn deliver(&self, host: HostId, report: TaskReport) -> bool;
}

/// The host that the client certificate is for.
pub struct Host(pub HostId);

impl FromRequestParts<Arc<Api>> for Host {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Failure> {
        let host = parts.extensions.get::<Peer>().and_then(|peer| peer.host);
        let text = "the certificate of a host is needed: join first";
        host.map(Self).ok_or_else(|| Failure::new(Code::Unauthenticated, text))
    }
}

/// A call that an agent caused: it acts for Kring, under the request's id.
pub struct AgentCx {
    cx: Cx,
    from: IpAddr,
}

impl FromRequestParts<Arc<Api>> for AgentCx {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        let (named, peer) = (parts.extensions.get::<Named>(), parts.extensions.get::<Peer>());
        let (Some(named), Some(peer)) = (named, peer) else {
            return Err(Error::internal("a request without a peer").into());
        };
        let mut cx = Cx::system(api.config.api.timeout());
        (cx.request_id, cx.trace) = (Arc::clone(&named.request_id), named.trace);
        Ok(Self { cx, from: peer.address.to_canonical() })
    }
}

/// The JSON body of an agent.
pub struct Told<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Told<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let bytes = read_body(body, &parts.headers, MAX_BODY, Instant::now() + api.config.api.timeout()).await?;
        let told = serde_json::from_slice(&bytes);
        Ok(Self(told.map_err(|e| Error::new(Code::InvalidRequest, format!("the body could not be read: {e}")))?))
    }
}

/// `POST /agent/v1/join`
pub async fn join(State(api): State<Arc<Api>>, AgentCx { cx, from }: AgentCx, Told(join): Told<Join>) -> Answer {
    api.gate.may_try(from)?;
    let id = join.host_id.unwrap_or_default();
    let joined = api.bus.call(&cx, JoinHost { id, from: from.to_string(), join }).await;
    if joined.as_ref().is_err_and(|e| matches!(e.code, Code::Unauthenticated | Code::Forbidden)) {
        api.gate.was_wrong(from);
    }
    reply::ok(&joined?)
}

/// `POST /agent/v1/renew`
pub async fn renew(
    State(api): State<Arc<Api>>,
    Host(id): Host,
    AgentCx { cx, .. }: AgentCx,
    Told(renew): Told<Renew>,
) -> Answer {
    reply::ok(&api.bus.call(&cx, RenewHost { id, renew }).await?)
}

/// `POST /agent/v1/events`
pub async fn events(
    State(api): State<Arc<Api>>,
    Host(id): Host,
    AgentCx { cx, .. }: AgentCx,
    Told(told): Told<AgentEvents>,
) -> Answer {
    if told.host_id != id {
        return Err(Failure::new(Code::Forbidden, format!("host {id} may not report on host {}", told.host_id)));
    }
    api.bus.call(&cx, HostEvents { id, events: told.events }).await?;
    reply::no_content()
}

/// `POST /agent/v1/callbacks/{task}`
pub async fn callback(
    State(api): State<Arc<Api>>,
    Host(host): Host,
    Id(task): Id<TaskId>,
    Told(report): Told<TaskReport>,
) -> Answer {
    if report.task_id() != task {
        return Err(Error::invalid("task_id", "is not the task of the callback").into());
    }
    match api.callbacks.deliver(host, report) {
        true => reply::no_content(),
        false => Err(Error::new(Code::NotFound, format!("nobody here waits for task {task} of host {host}")).into()),
    }
}

/// `GET /agent/v1/images/{id}/content`
pub async fn image(
    State(api): State<Arc<Api>>,
    Host(host): Host,
    AgentCx { cx, .. }: AgentCx,
    Id(image): Id<ImageId>,
    request: Request,
) -> Result<Response, Failure> {
    // A host that was deleted still has a certificate, but gets nothing any more.
    api.bus.call(&cx, GetHost { id: host }).await?;
    image_content::send(&api, image, request.headers()).await
}
