//! The simulator's control port: plain HTTP on loopback, for people and for load generators in other
//! processes.
//!
//! - `GET /hosts`: id, name, address and number of VMs of each host.
//! - `GET /hosts/{id}`: everything on a host. - `POST /hosts/{id}/{restart|reboot|down|up|freeze|thaw|wipe}`.
//! - `PUT /hosts/{id}` (a [`Conditions`]): libvirt that does not answer, a full disk, a clock that is off, guests that
//!   do not listen, events that are not pushed. What is left out stays as it is. (In these two, `*` is every host.)
//! - `POST /hosts/{id}/vms/{vm}/{running|paused|stopped|crashed|undefine}`: what an operator does there.
//! - `GET /faults`, `POST /faults` (a [`Fault`]), `DELETE /faults`, `DELETE /faults/{n}`.
//! - `PUT /images?url`: `{"url": …, "info": {…}}` or `{"url": …, "error": {…}}`.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use shared::id::{HostId, VmId};
use shared::wire::image::ImageInfo;
use shared::wire::vm::PowerState;
use shared::{Code, Error, Result};
use tokio::net::TcpListener;

use super::fault::{Fault, FaultId};
use super::{Host, Sim, serve};

/// Largest body of a request.
const MAX_BODY: usize = 1 << 20;

/// How a host is to be; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Conditions {
    /// Why libvirt does not answer; empty: it answers.
    pub libvirt_error: Option<String>,
    /// Bytes free on the disk.
    pub available: Option<shared::units::Bytes>,
    /// How far the clock is ahead, in milliseconds; behind when negative.
    pub clock_ahead_ms: Option<i64>,
    /// Whether guests take no notice of being asked to shut down or to let go of a disk.
    pub deaf_guests: Option<bool>,
    /// Whether the agent pushes no events, so that its pings alone tell of what has changed.
    pub silent: Option<bool>,
}

impl Conditions {
    fn put(&self, host: &Host) {
        let Self { libvirt_error, available, clock_ahead_ms, deaf_guests, silent } = self;
        let mut state = host.state();
        if let Some(reason) = libvirt_error {
            state.libvirt_error = Some(reason.clone()).filter(|reason| !reason.is_empty());
        }
        state.available = available.or(state.available);
        state.deaf_guests = deaf_guests.unwrap_or(state.deaf_guests);
        drop(state);
        if let Some(ms) = clock_ahead_ms {
            host.set_clock_ahead_ms(*ms);
        }
        if let Some(silent) = silent {
            host.set_silent(*silent);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetImage {
    url: String,
    #[serde(default)]
    info: Option<ImageInfo>,
    #[serde(default)]
    error: Option<Error>,
}

/// Serves the control port for as long as the simulator runs.
pub fn listen(sim: &Arc<Sim>, listener: TcpListener) {
    let of = Arc::clone(sim);
    sim.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let sim = Arc::clone(&of);
            of.spawn(async move {
                let service = service_fn(|request| {
                    let sim = Arc::clone(&sim);
                    async move { Ok::<_, Infallible>(answer(&sim, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                // A client that breaks off is the client's business.
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn answer(sim: &Arc<Sim>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.headers.contains_key(http::header::ORIGIN) {
        return serve::refuse(&Error::new(
            Code::Forbidden,
            "the control port is not for what a page in a browser sends",
        ));
    }
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return serve::refuse(&Error::new(Code::InvalidRequest, error.to_string())),
    };
    match handle(sim, &head.method, head.uri.path(), &body).await {
        Ok(value) => serve::json(StatusCode::OK, &value),
        Err(error) => serve::refuse(&error),
    }
}

async fn handle(sim: &Arc<Sim>, method: &Method, path: &str, body: &[u8]) -> Result<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method.as_str(), parts.as_slice()) {
        ("GET", ["hosts"]) => Ok(sim.hosts().iter().map(summary).collect()),
        ("GET", ["hosts", id]) => to_value(&*find(sim, id)?.state()),
        ("PUT", ["hosts", id]) => {
            let conditions: Conditions = read(body)?;
            let hosts = some(sim, id)?;
            hosts.iter().for_each(|host| conditions.put(host));
            Ok(hosts.iter().map(summary).collect())
        }
        ("POST", ["hosts", id, verb]) => {
            let hosts = some(sim, id)?;
            hosts.iter().try_for_each(|host| host_verb(host, verb))?;
            Ok(hosts.iter().map(summary).collect())
        }
        ("POST", ["hosts", id, "vms", vm, verb]) => vm_verb(&find(sim, id)?, vm, verb),
        ("GET", ["faults"]) => Ok(sim
            .faults()
            .list()
            .into_iter()
            .map(|(id, fault, hits)| json!({ "id": id, "fault": fault, "hits": hits }))
            .collect()),
        ("POST", ["faults"]) => Ok(json!({ "id": sim.faults().add(read::<Fault>(body)?) })),
        ("DELETE", ["faults"]) => {
            sim.faults().clear();
            Ok(json!({}))
        }
        ("DELETE", ["faults", id]) => {
            let id = id.parse().map_err(|_| Error::invalid("id", "must be a number"))?;
            Ok(json!({ "hits": sim.faults().remove(FaultId(id)) }))
        }
        ("PUT", ["images"]) => {
            let SetImage { url, info, error } = read(body)?;
            let result = match (info, error) {
                (_, Some(error)) => Err(error),
                (Some(info), None) => Ok(info),
                (None, None) => return Err(Error::invalid("info", "give info or error")),
            };
            sim.set_image(url, result);
            Ok(json!({}))
        }
        _ => Err(Error::new(Code::NotFound, "the control port has nothing at this path")),
    }
}

fn summary(host: &Arc<Host>) -> Value {
    json!({ "id": host.id, "name": host.name, "address": host.address, "vms": host.state().vms.len() })
}

fn host_verb(host: &Arc<Host>, verb: &str) -> Result<()> {
    match verb {
        "restart" => host.restart(),
        "reboot" => host.reboot(),
        "down" => host.down(),
        "up" => host.up(),
        "freeze" => host.freeze(),
        "thaw" => host.thaw(),
        "wipe" => host.wipe(),
        _ => return Err(Error::not_found("verb", verb)),
    }
    Ok(())
}

fn vm_verb(host: &Arc<Host>, vm: &str, verb: &str) -> Result<Value> {
    let vm: VmId = vm.parse().map_err(|e: shared::id::InvalidId| Error::invalid("vm", e.to_string()))?;
    if verb == "undefine" {
        host.virsh_undefine(vm);
        return Ok(json!({}));
    }
    let power: PowerState = serde_json::from_value(Value::from(verb)).map_err(|_| Error::not_found("verb", verb))?;
    host.virsh(vm, power)?;
    to_value(&host.state().report(vm)?)
}

/// One host, or all of them.
fn some(sim: &Sim, id: &str) -> Result<Vec<Arc<Host>>> {
    if id == "*" { Ok(sim.hosts()) } else { Ok(vec![find(sim, id)?]) }
}

fn find(sim: &Sim, id: &str) -> Result<Arc<Host>> {
    let wanted: Option<HostId> = id.parse().ok();
    let mut hosts = sim.hosts().into_iter();
    let found = hosts.find(|host| Some(host.id) == wanted || host.name.as_str() == id);
    found.ok_or_else(|| Error::not_found("host", id))
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| Error::new(Code::InvalidRequest, e.to_string()))
}

fn to_value(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(Error::internal)
}
