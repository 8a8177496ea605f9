//! Consoles of simulated VMs: a greeting that says what was opened, then every byte comes back.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use shared::id::VmId;
use shared::wire::vm::PowerState;
use shared::{Code, Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::host::Host;
use super::serve::{Answer, refuse};

/// What the `Upgrade` header says.
const PROTOCOL: &str = shared::wire::STREAM_PROTOCOL;

/// What the console of a VM says first: VNC's protocol version, or a line of text.
#[must_use]
pub fn greeting(vm: VmId, kind: &str) -> String {
    match kind {
        "vnc" => "RFB 003.008\n".to_string(),
        _ => format!("{kind} of {vm}\r\n"),
    }
}

/// Opens a console and hands the connection over to it.
pub(super) fn open(host: &Arc<Host>, id: &str, kind: &str, mut request: Request<Incoming>) -> Answer {
    let vm = match allowed(host, id, kind, &request) {
        Ok(vm) => vm,
        Err(error) => return refuse(&error),
    };
    let (upgrade, life, kind) = (hyper::upgrade::on(&mut request), host.life(), kind.to_string());
    host.spawn(async move {
        let echo = async {
            let mut stream = TokioIo::new(upgrade.await?);
            stream.write_all(greeting(vm, &kind).as_bytes()).await?;
            let mut piece = [0; 4096];
            while let n @ 1.. = stream.read(&mut piece).await? {
                stream.write_all(&piece[..n]).await?;
            }
            anyhow::Ok(())
        };
        // A restart of the agent ends its consoles; how a client goes away is the client's business.
        let _ = life.token.run_until_cancelled(echo).await;
    });
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    answer
}

fn allowed(host: &Host, id: &str, kind: &str, request: &Request<Incoming>) -> Result<VmId> {
    let vm: VmId = id.parse().map_err(|e: shared::id::InvalidId| Error::new(Code::InvalidRequest, e.to_string()))?;
    let wanted = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    if !matches!(kind, "serial" | "vnc") {
        return Err(Error::not_found("console", kind));
    }
    if wanted != Some(PROTOCOL) {
        return Err(Error::new(Code::InvalidRequest, format!("a console needs the header Upgrade: {PROTOCOL}")));
    }
    match host.state().report(vm)?.power {
        PowerState::Running | PowerState::Paused => Ok(vm),
        _ => Err(Error::new(Code::InvalidState, "the VM does not run")),
    }
}
