//! The whole protocol on one page; see `shared/src/wire/mod.rs`.

use std::sync::Arc;

use http::{Method, Request};
use hyper::body::Incoming;
use shared::wire::controllers::{self, HEADER_CONTROLLERS};
use shared::wire::host::Pong;
use shared::{Code, Error};
use tokio::sync::Semaphore;

use super::{Answer, commands, console, give, migration, read_body, refuse};
use crate::app::{App, VERSION};
use crate::identity::tls::Peer;
use crate::ops;

/// Answers one request.
pub(super) async fn answer(
    app: &Arc<App>,
    peer: Peer,
    consoles: &Arc<Semaphore>,
    request: Request<Incoming>,
) -> Answer {
    let path = request.uri().path().to_string();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if let Peer::Host(from) = peer {
        // The only thing that another host may ask for.
        return match parts.as_slice() {
            ["v1", "migrations", id, part] if request.method() == Method::GET => {
                migration::open(app, from, id, part, request).await
            }
            _ => refuse(&Error::new(Code::Forbidden, "a host may only send a guest that is expected")),
        };
    }
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let method = request.method().clone();
    if let Some(list) = request.headers().get(HEADER_CONTROLLERS).and_then(|list| list.to_str().ok()) {
        app.controller.tell(controllers::read(list));
    }
    match parts.as_slice() {
        ["v1", "ping"] if method == get => give(Ok(ping(app))),
        ["v1", "facts"] if method == get => give(Box::pin(ops::host::facts(app)).await),
        ["v1", "inventory"] if method == get => give(Box::pin(ops::host::inventory(app)).await),
        ["v1", "commands", noun, verb] if method == post => {
            let (head, body) = request.into_parts();
            match read_body(body).await {
                Ok(body) => commands::run(app, &format!("{noun}/{verb}"), &head.headers, &body).await,
                Err(error) => refuse(&error),
            }
        }
        ["v1", "tasks", id] if method == get => commands::look(app, id),
        ["v1", "tasks", id] if method == delete => commands::cancel(app, id, request.headers()),
        ["v1", "vms", id, "console", kind] if method == get => console::open(app, consoles, id, kind, request).await,
        ["v1", "ping" | "facts" | "inventory"]
        | ["v1", "commands", _, _]
        | ["v1", "tasks", _]
        | ["v1", "vms", _, "console", _] => {
            refuse(&Error::new(Code::MethodNotAllowed, format!("{method} is not allowed here")))
        }
        _ => refuse(&Error::new(Code::NotFound, "the agent has nothing at this path")),
    }
}

/// Never waits for anything: what libvirt says comes from memory.
fn ping(app: &App) -> Pong {
    let (summary, libvirt_error) = match app.hypervisor.summary() {
        Ok(summary) => (Some(summary), None),
        Err(reason) => (None, Some(reason)),
    };
    Pong {
        host_id: app.identity.load().host_id,
        boot_id: app.boot_id,
        agent_id: app.agent_id,
        agent_version: VERSION.to_string(),
        digest: summary.map(|summary| summary.digest),
        changes: summary.map(|summary| summary.changes),
        libvirt_error,
    }
}
