//! Requests that another controller must answer itself: the content of an image is kept by the image's owner.
//! They are handed to it as they come, so a client needs to reach one controller only.

use axum::body::Body;
use axum::extract::{OriginalUri, Request};
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use shared::{Code, Error};
use uuid::Uuid;

use super::Api;
use super::reply::Answer;
use crate::cx::Cx;
use crate::messages::controller::GetOwnership;

/// Says that a request was handed on: it is not handed on again, whoever is the owner by now.
const HANDED_ON: HeaderName = HeaderName::from_static("kring-handed-on");
/// Headers that belong to a connection and not to a request.
const OF_THE_CONNECTION: [HeaderName; 6] =
    [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE, header::EXPECT];

/// `ADDRESS:PORT` of the owner of a resource, when the request is to be handed to it.
pub(super) async fn owner_elsewhere(
    api: &Api,
    cx: &Cx,
    id: Uuid,
    headers: &HeaderMap,
) -> Result<Option<String>, Error> {
    if api.bus.owns(id) || headers.contains_key(HANDED_ON) {
        return Ok(None);
    }
    let owner = api
        .bus
        .call(&Cx { deadline: cx.deadline, ..Cx::system(api.config.api.timeout()) }, GetOwnership { id })
        .await?;
    let uri: Option<Uri> = owner.address.parse().ok();
    let authority = uri.as_ref().and_then(Uri::authority).map(ToString::to_string);
    authority.map(Some).ok_or_else(|| {
        let text = format!("the controller that owns this cannot be reached at \"{}\"", owner.address);
        Error::new(Code::Unavailable, text)
    })
}

/// Hands a request on and answers what the other controller answers.
pub(super) async fn hand_on(api: &Api, owner: &str, request: Request) -> Answer {
    let (mut head, body) = request.into_parts();
    for name in &OF_THE_CONNECTION {
        head.headers.remove(name);
    }
    head.headers.insert(HANDED_ON, HeaderValue::from_static("1"));
    let host = HeaderValue::from_str(owner).map_err(|e| Error::internal(format_args!("an address: {e}")))?;
    head.headers.insert(header::HOST, host);
    // As it came: the router has taken the prefix of the version off.
    let uri = head.extensions.get::<OriginalUri>().map_or(&head.uri, |original| &original.0);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().map_err(|e| Error::internal(format_args!("a path: {e}")))?;
    let answer = api.agents.hand_on(owner, http::Request::from_parts(head, body)).await?;
    let (mut head, body) = answer.into_parts();
    for name in &OF_THE_CONNECTION {
        head.headers.remove(name);
    }
    Ok(Response::from_parts(head, Body::from(body)))
}
