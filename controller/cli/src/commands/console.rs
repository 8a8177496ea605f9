//! `kring vm console`, `log` and `vnc`: the ways to a guest that need no network of its own.
//!
//! Each console is a WebSocket that a ticket opens once. What a guest writes is shown as it is on the
//! interactive console, as every terminal line does; a log shown on a terminal is stripped of what
//! would drive the terminal.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::json;
use shared::api::vm::{ConsoleKind, ConsoleLog, ConsoleTicket, OpenConsole};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::verbs::body;
use crate::client::ws::Socket;
use crate::client::{Call, Client};
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::{line, note, raw};
use crate::resolve::{self, Noun};
use crate::terminal::Raw;

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;
/// How often a followed log is asked for more.
const FOLLOW: Duration = Duration::from_millis(1000);

/// `kring vm console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Name or id
    vm: String,
    /// Only read: show the log and go on with it
    #[arg(long)]
    log: bool,
}

/// `kring vm log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Name or id
    vm: String,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Begin at this byte of the log, instead of near its end
    #[arg(long, value_name = "BYTE")]
    offset: Option<u64>,
}

/// `kring vm vnc`.
#[derive(Debug, Args)]
pub struct VncArgs {
    /// Name or id
    vm: String,
    /// Where viewers connect to; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5900")]
    listen: SocketAddr,
}

async fn open(client: &Client, vm: Uuid, kind: ConsoleKind) -> Result<Socket> {
    let path = format!("{}/console", Noun::VM.path_of(vm));
    let request = body(&OpenConsole { kind })?;
    let reply = client.send(Call::new(Method::POST, &path).body(request)).await?;
    let ticket: ConsoleTicket = serde_json::from_value(reply.body)
        .map_err(|e| CliError::Protocol(format!("the server's console ticket cannot be read: {e}")))?;
    client.websocket(&ticket.path).await
}

/// The interactive serial console.
pub async fn serial(ctx: &Ctx, args: ConsoleArgs) -> Result<()> {
    if args.log {
        return log(ctx, LogArgs { vm: args.vm, follow: true, offset: None }).await;
    }
    let id = resolve::id(&ctx.client, Noun::VM, &args.vm).await?;
    let socket = open(&ctx.client, id, ConsoleKind::Serial).await?;
    if std::io::stdin().is_terminal() {
        note(&format!("This is the serial console of {}. Enter wakes it up, Ctrl-] leaves it.", args.vm));
    }
    let terminal = Raw::enter()?;
    let result = talk(socket, terminal.is_some()).await;
    let was_raw = terminal.is_some();
    drop(terminal);
    if was_raw {
        note(&format!("\nLeft the console of {}.", args.vm));
    }
    result
}

/// Carries keys one way and characters the other, until one side ends it.
async fn talk(socket: Socket, interactive: bool) -> Result<()> {
    let mut ends = signal(SignalKind::terminate())?;
    let mut hangs_up = signal(SignalKind::hangup())?;
    let (mut keys, mut screen) = socket.split();
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0_u8; 4096];
    let mut reading = true;
    loop {
        tokio::select! {
            got = stdin.read(&mut buffer), if reading => {
                let n = got.map_err(|e| CliError::io("cannot read the keyboard", e))?;
                if n == 0 {
                    // Input from a file has ended; what the guest answers is still of interest.
                    reading = false;
                    continue;
                }
                let typed = &buffer[..n];
                let escape = if interactive { typed.iter().position(|b| *b == ESCAPE) } else { None };
                let typed = &typed[..escape.unwrap_or(n)];
                if !typed.is_empty() {
                    keys.send(Message::binary(typed.to_vec())).await.map_err(lost)?;
                }
                if escape.is_some() {
                    break;
                }
            }
            message = screen.next() => match message {
                None | Some(Ok(Message::Close(_))) => {
                    note("\r\nThe server closed the console: the vm stopped, or somebody else opened it.\r");
                    return Ok(());
                }
                Some(Ok(Message::Text(text))) => raw(text.as_bytes())?,
                Some(Ok(Message::Binary(bytes))) => raw(&bytes)?,
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(lost(e)),
            },
            _ = tokio::signal::ctrl_c() => break,
            _ = ends.recv() => break,
            _ = hangs_up.recv() => break,
        }
    }
    // A server that is gone cannot be told good-bye.
    let _ = keys.send(Message::Close(None)).await;
    Ok(())
}

fn lost(error: tokio_tungstenite::tungstenite::Error) -> CliError {
    CliError::Protocol(format!("the console was lost: {error}"))
}

/// The serial log.
pub async fn log(ctx: &Ctx, args: LogArgs) -> Result<()> {
    let id = resolve::id(&ctx.client, Noun::VM, &args.vm).await?;
    let path = format!("{}/console/log", Noun::VM.path_of(id));
    let clean = std::io::stdout().is_terminal();
    let mut offset = args.offset;
    loop {
        let mut call = Call::get(&path);
        if let Some(offset) = offset {
            call = call.query("offset", offset);
        }
        let reply = ctx.client.send(call).await?;
        if !args.follow && !ctx.for_people() {
            return crate::output::value(&reply.body, ctx.format);
        }
        let log: ConsoleLog = serde_json::from_value(reply.body)
            .map_err(|e| CliError::Protocol(format!("the server's log cannot be read: {e}")))?;
        let text = if clean { tame(&log.text) } else { log.text.clone() };
        raw(text.as_bytes())?;
        // A server may give a long log in pieces; a piece without text is the end.
        let whole = log.text.is_empty() || Some(log.next_offset) == offset;
        offset = Some(log.next_offset);
        if !args.follow {
            if whole || args.offset.is_none() {
                if clean && !text.ends_with('\n') {
                    line("")?;
                }
                return Ok(());
            }
        } else if whole {
            tokio::select! {
                () = tokio::time::sleep(FOLLOW) => {}
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
    }
}

/// Text without what drives a terminal, except colours and line ends.
fn tame(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(colour) = sgr(rest) {
            out.push_str(colour);
            rest = &rest[colour.len()..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        if c == '\u{1b}' {
            rest = after_sequence(rest);
        } else if !c.is_control() || matches!(c, '\n' | '\r' | '\t') {
            out.push(c);
        }
    }
    out
}

/// A colour sequence at the beginning of the text.
fn sgr(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("\u{1b}[")?;
    let end = inner.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    (inner[end..].starts_with('m')).then(|| &text[..end + 3])
}

/// What follows the escape sequence whose ESC is already taken.
fn after_sequence(text: &str) -> &str {
    match text.as_bytes().first() {
        Some(b'[') => {
            let end = text[1..].find(|c: char| ('@'..='~').contains(&c));
            end.map_or("", |end| &text[end + 2..])
        }
        Some(b']' | b'P' | b'^' | b'_' | b'X') => {
            let end = text.find(['\u{7}', '\u{1b}', '\n']);
            end.map_or("", |end| text[end..].trim_start_matches('\u{7}').trim_start_matches("\u{1b}\\"))
        }
        Some(_) => text.char_indices().nth(1).map_or("", |(i, _)| &text[i..]),
        None => "",
    }
}

/// A local port whose connections each become a VNC WebSocket.
pub async fn vnc(ctx: &Ctx, args: VncArgs) -> Result<()> {
    let id = resolve::id(&ctx.client, Noun::VM, &args.vm).await?;
    let cannot = |e| CliError::io(format!("cannot listen on {}", args.listen), e);
    let listener = TcpListener::bind(args.listen).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    if !address.ip().is_loopback() {
        note("warning: everybody who reaches this address can use the vm's screen and keyboard");
    }
    if ctx.for_people() {
        line(&format!("The screen of {} is at {address} until Ctrl-C; open it with a VNC viewer.", args.vm))?;
    } else {
        crate::output::value(&json!({"listen": address}), ctx.format)?;
    }
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (viewer, from) = accepted.map_err(cannot)?;
                let client = Arc::clone(&ctx.client);
                connections.spawn(async move {
                    if let Err(error) = carry(&client, id, viewer).await {
                        note(&format!("viewer {from}: {error}"));
                    }
                });
            }
            Some(_) = connections.join_next() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

async fn carry(client: &Client, vm: Uuid, viewer: TcpStream) -> Result<()> {
    let (mut out, mut input) = open(client, vm, ConsoleKind::Vnc).await?.split();
    let (mut read, mut write) = viewer.into_split();
    let mut buffer = vec![0_u8; 16 * 1024];
    loop {
        tokio::select! {
            got = read.read(&mut buffer) => match got? {
                0 => break,
                n => out.send(Message::binary(buffer[..n].to_vec())).await.map_err(lost)?,
            },
            message = input.next() => match message {
                None | Some(Ok(Message::Close(_))) => break,
                Some(Ok(Message::Binary(bytes))) => write.write_all(&bytes).await?,
                Some(Ok(Message::Text(text))) => write.write_all(text.as_bytes()).await?,
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(lost(e)),
            },
        }
    }
    // One side has ended; the other learns it from the closed connection.
    let _ = out.send(Message::Close(None)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_colours_and_nothing_else_that_drives_a_terminal() {
        let text = "\u{1b}[32mok\u{1b}[0m\r\n\u{1b}[2J\u{1b}[1;1Hhome\u{1b}]0;title\u{7}x\u{1b}cy\u{8}z\u{1b}";
        assert_eq!(tame(text), "\u{1b}[32mok\u{1b}[0m\r\nhomexyz");
        assert_eq!(tame("täg\t日本"), "täg\t日本");
        assert_eq!(tame("\u{1b}]52;c;payload\u{1b}\\after"), "after");
    }
}
