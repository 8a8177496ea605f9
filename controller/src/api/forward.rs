//! Requests that another controller must answer itself: the content of an image is kept by the image's owner,
//! and a console's ticket by who issued it. They are handed to it as they come, so a client needs to reach
//! one controller only.

use axum::body::Body;
use axum::extract::{OriginalUri, Request};
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use hyper_util::rt::TokioIo;
use shared::api::controller::Controller;
use shared::id::ControllerId;
use shared::wire::{CONTROLLER_DNS_NAME, HEADER_TRACEPARENT};
use shared::{Code, Error};
use uuid::Uuid;

use super::Api;
use super::front::{Named, REQUEST_ID};
use super::reply::Answer;
use crate::cx::Cx;
use crate::messages::controller::{GetController, GetOwnership};

/// Says that a request was handed on: it is not handed on again, whoever is the owner by now.
const HANDED_ON: HeaderName = HeaderName::from_static("kring-handed-on");
/// Headers that belong to a connection and not to a request.
const OF_THE_CONNECTION: [HeaderName; 6] =
    [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE, header::EXPECT];

/// Where the owner of a resource is reached, when the request is to be handed to it; see [`elsewhere`].
pub(super) async fn owner_elsewhere(
    api: &Api,
    cx: &Cx,
    id: Uuid,
    headers: &HeaderMap,
) -> Result<Option<Vec<String>>, Error> {
    if api.bus.owns(id) || headers.contains_key(HANDED_ON) {
        return Ok(None);
    }
    let owner = api
        .bus
        .call(&Cx { deadline: cx.deadline, ..Cx::system(api.config.api.timeout()) }, GetOwnership { id })
        .await?;
    elsewhere(api, owner.controller_id, headers).await
}

/// Each `ADDRESS:PORT` of a certain controller, when a request is to be handed to it: one may be in a network that
/// this one is not in. `None` when it is this one, or when the request has been handed on already.
///
/// # Errors
/// `not_found` when there is no such controller (any more).
pub(super) async fn elsewhere(api: &Api, id: ControllerId, headers: &HeaderMap) -> Result<Option<Vec<String>>, Error> {
    if api.bus.me() == id || headers.contains_key(HANDED_ON) {
        return Ok(None);
    }
    let controller = api.bus.call(&Cx::system(api.config.api.timeout()), GetController { id }).await?;
    authorities(&controller).map(Some)
}

fn authorities(controller: &Controller) -> Result<Vec<String>, Error> {
    let urls = std::iter::once(&controller.address).chain(&controller.report.addresses);
    let mut known = Vec::new();
    for url in urls {
        let uri: Option<Uri> = url.parse().ok();
        if let Some(authority) = uri.as_ref().and_then(Uri::authority).map(ToString::to_string)
            && !known.contains(&authority)
        {
            known.push(authority);
        }
    }
    if known.is_empty() {
        let text = format!("the controller that has this cannot be reached at \"{}\"", controller.address);
        return Err(Error::new(Code::Unavailable, text));
    }
    Ok(known)
}

/// Hands a request on and answers what the other controller answers.
pub(super) async fn hand_on(api: &Api, owner: &[String], request: Request) -> Answer {
    let (mut head, body) = request.into_parts();
    for name in &OF_THE_CONNECTION {
        head.headers.remove(name);
    }
    address_to(&mut head)?;
    Ok(answered(api.agents.hand_on(owner, http::Request::from_parts(head, body)).await?))
}

/// What another controller has answered, as an answer of this one.
fn answered(answer: http::Response<Bytes>) -> Response {
    let (mut head, body) = answer.into_parts();
    for name in &OF_THE_CONNECTION {
        head.headers.remove(name);
    }
    Response::from_parts(head, Body::from(body))
}

/// Hands a WebSocket on: what goes over it then passes through this controller as it comes, and the other
/// one ends it. `place` is held as long.
pub(super) async fn hand_on_socket(
    api: &Api,
    controller: &[String],
    mut request: Request,
    place: impl Send + 'static,
) -> Answer {
    let client = hyper::upgrade::on(&mut request);
    let (mut head, _) = request.into_parts();
    // It is handed on without a body, which no such request has.
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.remove(header::TRANSFER_ENCODING);
    address_to(&mut head)?;
    let (answer, upgraded) = api.agents.hand_on_upgrade(controller, http::Request::from_parts(head, ())).await?;
    let Some(there) = upgraded else { return Ok(answered(answer)) };
    let stop = api.stop.clone();
    api.tasks.spawn(async move {
        let _place = place;
        let passing = async {
            let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client.await?));
            let (mut from_there, mut to_there) = tokio::io::split(there);
            // When one side ends, what it said has been passed on, and there is nobody to answer it.
            tokio::select! {
                _ = tokio::io::copy(&mut from_client, &mut to_there) => {}
                _ = tokio::io::copy(&mut from_there, &mut to_client) => {}
            }
            Ok::<_, hyper::Error>(())
        };
        if let Some(Err(error)) = stop.run_until_cancelled(passing).await {
            tracing::debug!(%error, "a client did not take the socket that was handed on");
        }
    });
    Ok(answer.map(Body::from))
}

/// Makes a request one for another controller, marked as handed on, and the same request in its logs.
fn address_to(head: &mut Parts) -> Result<(), Error> {
    if let Some(named) = head.extensions.get::<Named>() {
        let known =
            [(REQUEST_ID, &*named.request_id), (HeaderName::from_static(HEADER_TRACEPARENT), &named.trace.header())];
        for (name, value) in known {
            let value = HeaderValue::from_str(value).map_err(|e| Error::internal(format_args!("a header: {e}")))?;
            head.headers.insert(name, value);
        }
    }
    head.headers.insert(HANDED_ON, HeaderValue::from_static("1"));
    head.headers.insert(header::HOST, HeaderValue::from_static(CONTROLLER_DNS_NAME));
    // As it came: the router has taken the prefix of the version off.
    let uri = head.extensions.get::<OriginalUri>().map_or(&head.uri, |original| &original.0);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().map_err(|e| Error::internal(format_args!("a path: {e}")))?;
    Ok(())
}
