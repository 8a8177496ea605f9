//! `/v1/events`: what happened, as a list or as a stream of server-sent events.
//!
//! A stream begins behind `after` (or `Last-Event-ID`, which browsers send when they come back), or
//! with what happens from now on. It never ends by itself, except when the controller stops or the
//! token does; then the client comes back with the last id that it has seen and misses nothing.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header};
use shared::api::event::Event;
use shared::api::page::{ListParams, Page};
use shared::{Code, Error};
use tokio::time::Instant;

use super::Api;
use super::authn;
use super::context::pairs;
use super::extract::list_params;
use super::front::{Named, Peer};
use super::reply::{self, Answer};
use super::streams::Place;
use crate::auth::token::sha256_hex;
use crate::cx::Cx;
use crate::messages::event::{ListEvents, NextEvents};

/// Longest silence on a stream: proxies and clients give up on a silent connection.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long the head of the answer may wait for the first events.
const FIRST_LOOK: Duration = Duration::from_millis(200);
/// Most events that are fetched at a time.
const BATCH: u32 = 256;

/// Lists events; with `Accept: text/event-stream` or `after`, streams them as they happen.
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    params(
        ListParams,
        ("after" = Option<i64>, Query, description = "Stream the events behind this cursor."),
        ("Last-Event-ID" = Option<i64>, Header, description = "The same, as browsers send it."),
    ),
    responses(
        (status = 200, content((Page<Event> = "application/json"), (String = "text/event-stream"))),
    )
)]
pub async fn list_events(State(api): State<Arc<Api>>, cx: Cx, request: Request) -> Answer {
    let (after, pairs): (Vec<_>, Vec<_>) = pairs(request.uri())?.into_iter().partition(|(key, _)| key == "after");
    let after = cursor(after.first().map(|(_, value)| value.as_str()), "after")?;
    let last = cursor(request.headers().get("last-event-id").and_then(|id| id.to_str().ok()), "Last-Event-ID")?;
    let streams = request
        .headers()
        .get_all(header::ACCEPT)
        .iter()
        .any(|accept| accept.to_str().is_ok_and(|text| text.contains("text/event-stream")));
    if streams || after.is_some() || last.is_some() {
        if let Some((key, _)) = pairs.first() {
            return Err(Error::invalid(key.as_str(), "a stream of events takes only \"after\"").into());
        }
        let (named, peer) = (request.extensions().get::<Named>().cloned(), request.extensions().get::<Peer>().copied());
        let (Some(named), Some(peer)) = (named, peer) else {
            return Err(Error::internal("a stream without a peer").into());
        };
        let place = api.streams.open(cx.caller.account())?;
        let (after, token) = (last.or(after), token_hash(request.headers()));
        return open(Follower { api, cx, after, named, peer, token, ready: None, _place: place }).await;
    }
    reply::list(&api, &cx, list_params(pairs)?, |params| ListEvents { params }).await
}

fn cursor(text: Option<&str>, name: &str) -> Result<Option<i64>, Error> {
    let read = |text: &str| text.parse().ok().filter(|n: &i64| *n >= 0);
    text.map(|text| read(text).ok_or_else(|| Error::invalid(name, "must be the cursor of an event, a whole number")))
        .transpose()
}

/// Looks once before it answers, so that what is wrong with the request is answered as a problem.
async fn open(mut follower: Follower) -> Answer {
    let first = follower.look(FIRST_LOOK).await?;
    let begin = b"retry: 2000\n: the stream begins\n\n";
    follower.ready = Some([begin.as_slice(), &first].concat().into());
    let body = Body::from_stream(stream::unfold(follower, |mut follower| async move {
        let frames = follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frames), follower))
    }));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

fn token_hash(headers: &HeaderMap) -> String {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
    sha256_hex(token.map_or("", |(_, token)| token.trim()))
}

/// One open stream.
struct Follower {
    api: Arc<Api>,
    cx: Cx,
    after: Option<i64>,
    named: Named,
    peer: Peer,
    token: String,
    /// Frames that are sent before anything is asked.
    ready: Option<Bytes>,
    _place: Place,
}

impl Follower {
    /// The next frames; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(ready) = self.ready.take() {
            return Some(ready);
        }
        // A stream lives long: its token may have been revoked since.
        authn::recheck(&self.api, self.token.clone(), &self.named, self.peer.address).await.ok()?;
        let stop = self.api.stop.clone();
        match stop.run_until_cancelled(self.look(KEEP_ALIVE)).await? {
            Ok(frames) => Some(frames),
            Err(error) => {
                tracing::info!(request.id = %self.cx.request_id, error = error.chain(), "an event stream ends");
                None
            }
        }
    }

    /// Asks for events and waits for them at most this long.
    async fn look(&mut self, wait: Duration) -> Result<Bytes, Error> {
        self.cx.deadline = Instant::now() + wait;
        match self.api.call(&self.cx, NextEvents { after: self.after, max: BATCH }).await {
            Ok(reply) => {
                self.after = Some(reply.cursor);
                Ok(frames(&reply.events))
            }
            Err(error) if error.code == Code::DeadlineExceeded => Ok(frames(&[])),
            Err(error) => Err(error),
        }
    }
}

fn frames(events: &[Event]) -> Bytes {
    if events.is_empty() {
        return Bytes::from_static(b": still here\n\n");
    }
    let mut text = String::with_capacity(events.len() * 256);
    for event in events {
        // JSON has no line breaks of its own, so one data line holds it.
        let Ok(json) = serde_json::to_string(event) else { continue };
        // Writing to a String cannot fail.
        let _ = write!(text, "id: {}\ndata: {json}\n\n", event.cursor);
    }
    text.into()
}
