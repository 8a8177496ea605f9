//! A request of another host becomes a stream of a migration: `101`, then raw bytes both ways until one side
//! ends or the agent stops.

use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use shared::id::{HostId, VmId};
use shared::{Code, Error, Result};

use super::{Answer, must_upgrade, refuse, switching};
use crate::app::App;
use crate::relay::{self, Part};

/// Bytes that are on their way in each direction.
const BUFFER: usize = 1 << 20;

/// Opens a stream and hands the connection over to it.
pub(super) async fn open(app: &Arc<App>, from: HostId, id: &str, part: &str, request: Request<Incoming>) -> Answer {
    match try_open(app, from, id, part, request).await {
        Ok(answer) => answer,
        Err(error) => refuse(&error),
    }
}

async fn try_open(
    app: &Arc<App>,
    from: HostId,
    id: &str,
    part: &str,
    mut request: Request<Incoming>,
) -> Result<Answer> {
    let vm_id: VmId = id.parse().map_err(|e: shared::id::InvalidId| Error::new(Code::InvalidRequest, e.to_string()))?;
    let part = Part::parse(part).ok_or_else(|| Error::not_found("stream", part))?;
    must_upgrade(&request, "a stream")?;
    let mut near = relay::accept(app, vm_id, from, part).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    let stop = app.shutdown.clone();
    app.tracker.spawn(async move {
        let copy = async {
            let mut far = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
            tokio::io::copy_bidirectional_with_sizes(&mut far, &mut near, BUFFER, BUFFER).await
        };
        match stop.run_until_cancelled(copy).await {
            Some(Ok((up, down))) => {
                tracing::debug!(vm.id = %vm_id, host.id = %from, part = part.as_str(), up, down, "a stream has ended");
            }
            Some(Err(error)) => {
                tracing::debug!(vm.id = %vm_id, host.id = %from, part = part.as_str(), %error, "a stream broke off");
            }
            None => {}
        }
    });
    Ok(switching())
}
