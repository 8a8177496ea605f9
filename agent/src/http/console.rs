//! A request becomes a console: `101`, then raw bytes both ways until one side ends or the agent stops.

use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use shared::api::vm::ConsoleKind;
use shared::id::VmId;
use shared::{Code, Error, Result};
use tokio::sync::Semaphore;

use super::{Answer, must_upgrade, refuse, switching};
use crate::app::App;
use crate::ops;

/// Opens a console and hands the connection over to it.
pub(super) async fn open(
    app: &Arc<App>,
    places: &Arc<Semaphore>,
    id: &str,
    kind: &str,
    request: Request<Incoming>,
) -> Answer {
    match try_open(app, places, id, kind, request).await {
        Ok(answer) => answer,
        Err(error) => refuse(&error),
    }
}

async fn try_open(
    app: &Arc<App>,
    places: &Arc<Semaphore>,
    id: &str,
    kind: &str,
    mut request: Request<Incoming>,
) -> Result<Answer> {
    let vm_id: VmId = id.parse().map_err(|e: shared::id::InvalidId| Error::new(Code::InvalidRequest, e.to_string()))?;
    let kind = match kind {
        "serial" => ConsoleKind::Serial,
        "vnc" => ConsoleKind::Vnc,
        _ => return Err(Error::not_found("console", kind)),
    };
    must_upgrade(&request, "a console")?;
    let place = Arc::clone(places)
        .try_acquire_owned()
        .map_err(|_| Error::new(Code::Unavailable, "too many consoles are open on the host"))?;
    let mut stream = Box::pin(ops::console::open(app, vm_id, kind)).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    let stop = app.shutdown.clone();
    app.tracker.spawn(async move {
        let _place = place;
        let copy = async {
            match upgrade.await {
                Ok(client) => tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut stream).await,
                Err(error) => Err(std::io::Error::other(error)),
            }
        };
        match stop.run_until_cancelled(copy).await {
            Some(Ok((up, down))) => tracing::debug!(vm.id = %vm_id, up, down, "the console is closed"),
            Some(Err(error)) => tracing::debug!(vm.id = %vm_id, %error, "the console broke off"),
            None => {}
        }
    });
    Ok(switching())
}
