//! Consoles: a one-time ticket, then a WebSocket whose bytes go to and from the host's agent.
//!
//! Browsers cannot send a token with a WebSocket, so a request with a token gets a ticket, which is
//! good once and for a short time. The host is connected before the WebSocket is accepted, so what
//! goes wrong is answered as a problem and not as a dead socket.
//!
//! A ticket names the controller that issued it, which alone keeps it: a WebSocket that comes to another
//! one is handed on there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts as _, Request, State};
use http::Uri;
use shared::api::vm::{ConsoleKind, ConsoleLog, ConsoleTicket, OpenConsole};
use shared::id::{AccountId, ControllerId, VmId};
use shared::{Code, Error};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::context::{pairs, unknown_parameter};
use super::extract::{Id, Json};
use super::forward;
use super::reply::{self, Answer};
use crate::agent_client::HostRef;
use crate::auth::token::new_ticket;
use crate::cx::Cx;
use crate::messages::vm::{GetConsoleLog, LogRange, RouteConsole};

/// How long a ticket is good.
const TICKET_LIFE: Duration = Duration::from_secs(30);
/// Between the issuer of a ticket and its secret.
const BETWEEN: char = '.';
/// Most tickets that are good at a time.
const MAX_TICKETS: usize = 10_000;
/// How long the host may take to open the console.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a console may be silent on both sides.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// How often a silent client is asked for a sign of life.
const PING: Duration = Duration::from_secs(30);
/// How long either side may take to accept a piece.
const SEND: Duration = Duration::from_secs(30);
/// Largest piece that is passed on at a time.
const PIECE: usize = 32 * 1024;
/// Largest piece of a serial log that is answered.
const MAX_LOG: u32 = 256 * 1024;

/// Where a ticket leads.
#[derive(Clone, Debug)]
struct Ticket {
    vm: VmId,
    kind: ConsoleKind,
    account: Option<AccountId>,
    host: HostRef,
    until: Instant,
}

/// Tickets that are good now.
#[derive(Debug)]
pub(super) struct Tickets {
    issuer: ControllerId,
    good: Mutex<HashMap<String, Ticket>>,
}

impl Tickets {
    pub(super) fn new(issuer: ControllerId) -> Self {
        Self { issuer, good: Mutex::default() }
    }

    fn issue(&self, ticket: Ticket) -> Result<String, Error> {
        let mut tickets = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() >= MAX_TICKETS {
            let now = Instant::now();
            tickets.retain(|_, ticket| ticket.until > now);
            if tickets.len() >= MAX_TICKETS {
                return Err(Error::new(Code::Unavailable, "too many consoles are being opened: try again in a moment"));
            }
        }
        let name = format!("{}{BETWEEN}{}", self.issuer, new_ticket());
        tickets.insert(name.clone(), ticket);
        Ok(name)
    }

    /// Takes a ticket: it is good once.
    fn take(&self, name: &str) -> Result<Ticket, Error> {
        let ticket = self.good.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        ticket.filter(|ticket| ticket.until > Instant::now()).ok_or_else(no_such_ticket)
    }
}

/// The controller that issued a ticket, when it names one.
fn issuer(ticket: &str) -> Option<ControllerId> {
    ticket.split_once(BETWEEN).and_then(|(issuer, _)| issuer.parse().ok())
}

fn no_such_ticket() -> Error {
    Error::new(Code::NotFound, "this console ticket is used, too old or unknown: ask for another one")
}

/// Opens a console: answers a one-time ticket for a WebSocket.
#[utoipa::path(post, path = "/vms/{id}/console", tag = "vms", params(("id" = VmId, Path)), request_body = OpenConsole, responses((status = 201, body = ConsoleTicket)))]
pub async fn open_console(
    State(api): State<Arc<Api>>,
    cx: Cx,
    Id(vm): Id<VmId>,
    Json(body): Json<OpenConsole>,
) -> Answer {
    let kind = body.kind;
    let route = api.call(&cx, RouteConsole { id: vm, kind }).await?;
    let host = HostRef { id: route.host_id, address: route.address };
    let name = api.tickets.issue(Ticket {
        vm,
        kind,
        account: cx.caller.account(),
        host,
        until: Instant::now() + TICKET_LIFE,
    })?;
    let expires_at = api.clock.now().plus_ms(i64::try_from(TICKET_LIFE.as_millis()).unwrap_or(0));
    reply::created(&cx, "console", &name, &ConsoleTicket { kind, path: format!("/v1/console/{name}"), expires_at })
}

/// Reads the end of what the guest wrote to its serial line, or what it wrote from an offset on.
#[utoipa::path(
    get,
    path = "/vms/{id}/console/log",
    tag = "vms",
    params(
        ("id" = VmId, Path),
        ("offset" = Option<u64>, Query, description = "First byte; absent for the end of the log."),
        ("max" = Option<u32>, Query, description = "Most bytes, at most 262144. Default 65536."),
    ),
    responses((status = 200, body = ConsoleLog))
)]
pub async fn get_console_log(State(api): State<Arc<Api>>, cx: Cx, Id(id): Id<VmId>, uri: Uri) -> Answer {
    let mut range = LogRange { offset: None, max: 65_536 };
    for (key, value) in pairs(&uri)? {
        let number = |max: u64| value.parse().ok().filter(|n| *n <= max);
        let bad = || Error::invalid(key.as_str(), "must be a whole number of bytes");
        match key.as_str() {
            "offset" => range.offset = Some(number(i64::MAX as u64).ok_or_else(bad)?),
            "max" => range.max = number(MAX_LOG.into()).filter(|n| *n > 0).ok_or_else(bad)? as u32,
            other => return Err(unknown_parameter(other, "offset or max").into()),
        }
    }
    reply::ok(&api.call(&cx, GetConsoleLog { id, range }).await?)
}

/// `GET /v1/console/{ticket}`: the WebSocket. The ticket is the authentication.
pub async fn attach_console(State(api): State<Arc<Api>>, Id(name): Id<String>, request: Request) -> Answer {
    let elsewhere = match issuer(&name) {
        Some(issuer) => forward::elsewhere(&api, issuer, request.headers()).await,
        None => Ok(None),
    };
    match elsewhere {
        Ok(None) => attach(&api, &name, request).await,
        Ok(Some(controller)) => {
            // Whose console it is, only the other controller knows.
            let place = api.streams.open(None)?;
            forward::hand_on_socket(&api, &controller, request, place).await
        }
        Err(error) if error.code == Code::NotFound => Err(no_such_ticket().into()),
        Err(error) => Err(error.into()),
    }
}

/// Takes a ticket of this controller's own.
async fn attach(api: &Api, name: &str, request: Request) -> Answer {
    // A request that is no WebSocket does not use the ticket up.
    let upgrade = WebSocketUpgrade::from_request_parts(&mut request.into_parts().0, &())
        .await
        .map_err(|e| Error::new(Code::InvalidRequest, format!("a console is a WebSocket: {}", e.body_text())))?;
    let ticket = api.tickets.take(name)?;
    let place = api.streams.open(ticket.account)?;
    let kind = match ticket.kind {
        ConsoleKind::Serial => "serial",
        ConsoleKind::Vnc => "vnc",
    };
    let stream =
        api.agents.open_console(&ticket.host, &format!("/v1/vms/{}/console/{kind}", ticket.vm), CONNECT).await?;
    tracing::info!(vm.id = %ticket.vm, host.id = %ticket.host.id, kind, "a console opens");
    let (tasks, stop) = (api.tasks.clone(), api.stop.clone());
    let pumping = move |socket| {
        tasks.track_future(async move {
            let _place = place;
            pump(socket, stream, stop).await;
            tracing::info!(vm.id = %ticket.vm, kind, "a console closes");
        })
    };
    Ok(upgrade.protocols(["binary"]).max_message_size(1 << 20).max_frame_size(1 << 20).on_upgrade(pumping))
}

/// Passes bytes both ways until one side ends, both are silent for too long, or the controller stops.
async fn pump(mut socket: WebSocket, mut stream: impl AsyncRead + AsyncWrite + Unpin, stop: CancellationToken) {
    let mut piece = vec![0; PIECE];
    let mut idle_at = Instant::now() + IDLE;
    let close = |code, reason: &'static str| Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    let last = loop {
        tokio::select! {
            read = stream.read(&mut piece) => match read {
                Ok(n) if n > 0 => {
                    let bytes = bytes::Bytes::copy_from_slice(&piece[..n]);
                    if !matches!(timeout(SEND, socket.send(Message::Binary(bytes))).await, Ok(Ok(()))) {
                        return;
                    }
                    idle_at = Instant::now() + IDLE;
                }
                Ok(_) => break close(close_code::NORMAL, "the console ended"),
                Err(_) => break close(close_code::ERROR, "the connection to the host was lost"),
            },
            message = socket.recv() => {
                let bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if !matches!(timeout(SEND, stream.write_all(&bytes)).await, Ok(Ok(()))) {
                    break close(close_code::ERROR, "the connection to the host was lost");
                }
                idle_at = Instant::now() + IDLE;
            }
            () = tokio::time::sleep_until(idle_at) => break close(close_code::POLICY, "nothing happened for too long"),
            () = tokio::time::sleep(PING) => {
                if !matches!(timeout(SEND, socket.send(Message::Ping(bytes::Bytes::new()))).await, Ok(Ok(()))) {
                    return;
                }
            }
            () = stop.cancelled() => break close(close_code::AWAY, "the controller stops"),
        }
    };
    // The other side may be gone already.
    let _ = timeout(SEND, socket.send(last)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::id::HostId;

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_good_once_and_for_a_short_time() {
        let tickets = Tickets::new(ControllerId::new());
        let ticket = || Ticket {
            vm: VmId::new(),
            kind: ConsoleKind::Serial,
            account: None,
            host: HostRef { id: HostId::new(), address: "127.0.0.1:1".into() },
            until: Instant::now() + TICKET_LIFE,
        };
        let name = tickets.issue(ticket()).unwrap();
        assert_eq!(issuer(&name), Some(tickets.issuer));
        assert!(tickets.take(&name).is_ok());
        assert_eq!(tickets.take(&name).unwrap_err().code, Code::NotFound);
        let late = tickets.issue(ticket()).unwrap();
        tokio::time::advance(TICKET_LIFE).await;
        assert!(tickets.take(&late).is_err());
        for _ in 0..MAX_TICKETS {
            tickets.issue(ticket()).unwrap();
        }
        assert_eq!(tickets.issue(ticket()).unwrap_err().code, Code::Unavailable);
        tokio::time::advance(TICKET_LIFE).await;
        assert!(tickets.issue(ticket()).is_ok());
    }
}
