//! The metadata service of a network: what cloud images look for at `http://169.254.169.254`.
//!
//! The socket is opened inside the network's namespace, so a guest is known by its source address
//! and networks with the same addresses never mix (and the guest's card lets no other address out).
//! Served: EC2's paths for any date or `latest`, its session tokens (IMDSv2), OpenStack's, NoCloud's,
//! and `POST /kring/ready`, by which a guest says that it is up.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use shared::id::VmId;
use shared::time::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::files::{read_json, write_atomic};
use super::namespace::Namespace;
use super::token::Tokens;
use super::{Error, METADATA_ADDRESS};
use crate::cloud_init::{GuestData, vm_dir};

/// Connections of one network at a time; more wait in the kernel.
const CONNECTIONS: usize = 64;
/// How long a guest may take to send a request's head, and to be served at all.
const HEAD_TIME: Duration = Duration::from_secs(10);
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// Most bytes of a body that a guest may send.
const MAX_BODY: usize = 4096;
/// Versions that are listed; any other date is answered as well.
const VERSIONS: &str = "1.0\n2009-04-04\n2021-03-23\nlatest";

/// Who has which address in a network.
pub type Addresses = Arc<RwLock<HashMap<Ipv4Addr, VmId>>>;

/// What the guest's word that it is up is kept as, in the VM's folder.
pub const READY_FILE: &str = "guest-ready.json";

/// What one network's service needs.
#[derive(Clone, Debug)]
pub struct Service {
    /// Who is who.
    pub addresses: Addresses,
    /// The agent's data folder.
    pub data_dir: PathBuf,
    /// Session tokens.
    pub tokens: Arc<Tokens>,
}

/// Opens the socket in the namespace.
pub async fn bind(namespace: &Namespace) -> Result<tokio::net::TcpListener, Error> {
    let listener = namespace
        .run(|| {
            let listener = TcpListener::bind((METADATA_ADDRESS, 80))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .await?;
    tokio::net::TcpListener::from_std(listener).map_err(|source| Error::Namespace {
        doing: "listened in",
        path: namespace.path().to_owned(),
        source,
    })
}

/// Serves until `stop`.
pub async fn serve(listener: tokio::net::TcpListener, service: Service, tracker: TaskTracker, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = stop.cancelled() => return,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (service, stop) = (service.clone(), stop.clone());
                tracker.spawn(async move {
                    tokio::select! {
                        () = connection(stream, peer, service) => {}
                        () = stop.cancelled() => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, say: the place is given back, and the next try comes a little later.
                tracing::warn!(error = %error, "a guest's connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, service: Service) {
    let answer = hyper::service::service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(peer, request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(CONNECTION_TIME, serving).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(guest.address = %peer.ip(), error = %error, "a guest's request broke off"),
    }
}

type Answer = Response<Full<Bytes>>;

impl Service {
    async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Answer {
        let SocketAddr::V4(peer) = peer else { return text(StatusCode::NOT_FOUND, "") };
        let guest = *peer.ip();
        let vm_id = self.addresses.read().ok().and_then(|addresses| addresses.get(&guest).copied());
        let Some(vm_id) = vm_id else {
            tracing::info!(guest.address = %guest, "metadata asked for from an address that no VM has");
            return text(StatusCode::NOT_FOUND, "no VM has this address\n");
        };
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().trim_start_matches('/').to_string();
        match (&parts.method, path.as_str()) {
            (&Method::PUT, "latest/api/token") => self.token(guest, &parts.headers),
            (&Method::POST | &Method::PUT, "kring/ready") => match Limited::new(body, MAX_BODY).collect().await {
                Ok(body) => self.ready(vm_id, guest, &body.to_bytes()),
                Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, "at most 4096 bytes\n"),
            },
            (&Method::GET | &Method::HEAD, _) => {
                if let Some(token) = parts.headers.get("x-aws-ec2-metadata-token")
                    && !self.tokens.is_valid(token.as_bytes(), guest, Timestamp::now())
                {
                    return text(StatusCode::UNAUTHORIZED, "");
                }
                self.read(vm_id, &path)
            }
            _ => text(StatusCode::METHOD_NOT_ALLOWED, ""),
        }
    }

    fn token(&self, guest: Ipv4Addr, headers: &http::HeaderMap) -> Answer {
        // A request that came through a proxy is not from the guest itself (as EC2 has it).
        if headers.contains_key("x-forwarded-for") {
            return text(StatusCode::FORBIDDEN, "");
        }
        let ttl =
            headers.get("x-aws-ec2-metadata-token-ttl-seconds").and_then(|v| v.to_str().ok()?.parse::<u32>().ok());
        match ttl {
            Some(ttl @ 1..=21600) => {
                let mut answer = text(StatusCode::OK, self.tokens.issue(guest, ttl, Timestamp::now()));
                answer.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from(ttl));
                answer
            }
            _ => text(StatusCode::BAD_REQUEST, ""),
        }
    }

    fn ready(&self, vm_id: VmId, guest: Ipv4Addr, body: &[u8]) -> Answer {
        let dir = vm_dir(&self.data_dir, vm_id);
        let word = json!({ "at": Timestamp::now(), "ip": guest, "message": String::from_utf8_lossy(body) });
        match write_atomic(&dir.join(READY_FILE), word.to_string().as_bytes(), 0o644) {
            Ok(()) => {
                tracing::info!(vm.id = %vm_id, guest.address = %guest, "the guest says that it is up");
                text(StatusCode::OK, "ok\n")
            }
            Err(error) => {
                tracing::error!(vm.id = %vm_id, error = %error, "a guest's word could not be kept");
                text(StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }

    fn read(&self, vm_id: VmId, path: &str) -> Answer {
        match GuestData::read(&vm_dir(&self.data_dir, vm_id)) {
            Ok(Some(data)) => match document(&data, path) {
                Some(body) => text(StatusCode::OK, body),
                None => text(StatusCode::NOT_FOUND, ""),
            },
            Ok(None) => text(StatusCode::NOT_FOUND, ""),
            Err(error) => {
                tracing::error!(vm.id = %vm_id, error = %error, "a guest's metadata cannot be read");
                text(StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }
}

/// When the guest of a VM last said that it is up, as it was kept; `None` when it never did.
///
/// # Errors
/// When the file cannot be read.
pub fn guest_ready(
    data_dir: &std::path::Path,
    vm_id: VmId,
) -> Result<Option<serde_json::Value>, super::files::FileError> {
    read_json(&vm_dir(data_dir, vm_id).join(READY_FILE))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

/// The document of a path (without its first `/`).
fn document(data: &GuestData, path: &str) -> Option<String> {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    match (first, rest) {
        ("", "") => Some(VERSIONS.into()),
        // NoCloud, with this address as its seed.
        ("meta-data", "") => Some(data.meta_data()),
        ("user-data", "") => Some(data.user_data()),
        ("network-config", "") => Some(data.network_config()),
        ("vendor-data", "") => Some(String::new()),
        ("openstack", rest) => openstack(data, rest),
        (version, rest) if is_version(version) => ec2(data, rest),
        _ => None,
    }
}

/// `latest`, `1.0` or a date.
fn is_version(text: &str) -> bool {
    let date = |t: &str| {
        t.len() == 10
            && t.bytes().enumerate().all(|(n, b)| if n == 4 || n == 7 { b == b'-' } else { b.is_ascii_digit() })
    };
    matches!(text, "latest" | "1.0") || date(text)
}

fn ec2(data: &GuestData, path: &str) -> Option<String> {
    match path.split_once('/').unwrap_or((path, "")) {
        ("", "") => Some("dynamic/\nmeta-data/\nuser-data".into()),
        // EC2 has no user data unless some was given: a default would hide that.
        ("user-data", "") => data.user_data.clone(),
        ("dynamic", "") => Some("instance-identity/".into()),
        ("dynamic", "instance-identity" | "instance-identity/") => Some("document".into()),
        ("dynamic", "instance-identity/document") => Some(identity_document(data)),
        ("meta-data", rest) => ec2_meta_data(data, rest),
        _ => None,
    }
}

fn identity_document(data: &GuestData) -> String {
    let ip = data.cards.first().map(|card| card.ip);
    format!("{:#}\n", json!({ "instanceId": data.vm_id, "privateIp": ip, "region": "kring", "architecture": "x86_64" }))
}

fn ec2_meta_data(data: &GuestData, path: &str) -> Option<String> {
    let first = data.cards.first();
    match path.trim_end_matches('/') {
        "" => {
            let mut keys = vec!["ami-launch-index", "hostname", "instance-id", "instance-type", "local-hostname"];
            if first.is_some() {
                keys.extend(["local-ipv4", "mac", "network/"]);
            }
            keys.push("placement/");
            if !data.ssh_keys.is_empty() {
                keys.push("public-keys/");
            }
            Some(keys.join("\n"))
        }
        "ami-launch-index" => Some("0".into()),
        "hostname" | "local-hostname" => Some(data.hostname.clone()),
        "instance-id" => Some(data.vm_id.to_string()),
        "instance-type" => Some("kring".into()),
        "local-ipv4" => first.map(|card| card.ip.to_string()),
        "mac" => first.map(|card| card.mac.clone()),
        "placement" => Some("availability-zone".into()),
        "placement/availability-zone" => Some("kring".into()),
        "network" => first.map(|_| "interfaces/".into()),
        "network/interfaces" => first.map(|_| "macs/".into()),
        other => {
            other.strip_prefix("public-keys").map(|rest| public_keys(data, rest.trim_start_matches('/'))).or_else(
                || other.strip_prefix("network/interfaces/macs").map(|rest| macs(data, rest.trim_start_matches('/'))),
            )?
        }
    }
}

fn public_keys(data: &GuestData, path: &str) -> Option<String> {
    if path.is_empty() {
        let names: Vec<_> = (0..data.ssh_keys.len()).map(|n| format!("{n}=key{n}")).collect();
        return (!names.is_empty()).then(|| names.join("\n"));
    }
    let (number, rest) = path.split_once('/').unwrap_or((path, ""));
    let key = data.ssh_keys.get(number.parse::<usize>().ok()?)?;
    match rest {
        "" => Some("openssh-key".into()),
        "openssh-key" => Some(format!("{key}\n")),
        _ => None,
    }
}

fn macs(data: &GuestData, path: &str) -> Option<String> {
    if path.is_empty() {
        let macs: Vec<_> = data.cards.iter().map(|card| format!("{}/", card.mac)).collect();
        return (!macs.is_empty()).then(|| macs.join("\n"));
    }
    let (mac, rest) = path.split_once('/').unwrap_or((path, ""));
    let (number, card) = data.cards.iter().enumerate().find(|(_, card)| card.mac == mac)?;
    match rest {
        "" => Some("device-number\nlocal-hostname\nlocal-ipv4s\nmac".into()),
        "device-number" => Some(number.to_string()),
        "local-hostname" => Some(data.hostname.clone()),
        "local-ipv4s" => Some(card.ip.to_string()),
        "mac" => Some(card.mac.clone()),
        _ => None,
    }
}

fn openstack(data: &GuestData, path: &str) -> Option<String> {
    let (version, document) = path.split_once('/').unwrap_or((path, ""));
    match (version, document) {
        ("", "") => Some("2012-08-10\n2018-08-27\nlatest".into()),
        (version, document) if is_version(version) => match document {
            "" => Some("meta_data.json\nnetwork_data.json\nuser_data\nvendor_data.json".into()),
            "meta_data.json" => {
                let keys: serde_json::Map<_, _> =
                    data.ssh_keys.iter().enumerate().map(|(n, key)| (format!("key{n}"), json!(key))).collect();
                Some(json!({ "uuid": data.vm_id, "name": data.hostname, "hostname": data.hostname, "launch_index": 0, "public_keys": keys, "meta": {} }).to_string())
            }
            "network_data.json" => Some(openstack_network(data).to_string()),
            "user_data" => data.user_data.clone(),
            "vendor_data.json" | "vendor_data2.json" => Some("{}".into()),
            _ => None,
        },
        _ => None,
    }
}

fn openstack_network(data: &GuestData) -> serde_json::Value {
    let cards = || data.cards.iter().enumerate();
    let links: Vec<_> = cards()
        .map(|(n, card)| json!({ "id": format!("nic{n}"), "type": "bridge", "ethernet_mac_address": card.mac, "mtu": card.mtu }))
        .collect();
    let networks: Vec<_> = cards()
        .map(|(n, _)| json!({ "id": format!("network{n}"), "link": format!("nic{n}"), "type": "ipv4_dhcp" }))
        .collect();
    json!({ "links": links, "networks": networks, "services": [] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::vm;

    fn data() -> GuestData {
        let mut data = GuestData::of(&vm());
        data.user_data = Some("#!/bin/sh\n".into());
        data
    }

    #[test]
    fn every_path_that_is_listed_is_there() {
        fn walk(data: &GuestData, dir: &str, seen: &mut Vec<String>) {
            let listing = document(data, dir).unwrap_or_else(|| panic!("{dir} is listed and not there"));
            for entry in listing.lines() {
                let entry = entry.split_once('=').map_or(entry.to_string(), |(n, _)| format!("{n}/"));
                let path = format!("{dir}{entry}");
                if path.ends_with('/') {
                    walk(data, &path, seen);
                } else {
                    let text = document(data, &path).unwrap_or_else(|| panic!("{path} is listed and not there"));
                    seen.push(format!("{path}: {}", text.trim_end()));
                }
            }
        }
        let (data, mut seen) = (data(), Vec::new());
        for root in ["latest/", "2009-04-04/meta-data/", "openstack/latest/"] {
            walk(&data, root, &mut seen);
        }
        insta::assert_snapshot!("metadata_tree", seen.join("\n"));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let data = data();
        for path in [
            "x",
            "latest/x",
            "latest/meta-data/public-keys/1",
            "latest/meta-data/public-keys/0/x",
            "2009-04-0x/meta-data/",
            "latest/meta-data/network/interfaces/macs/x/mac",
            "latest/meta-data/../user-data",
            "openstack/x/user_data",
        ] {
            assert_eq!(document(&data, path), None, "{path}");
        }
    }

    #[test]
    fn without_user_data_ec2_has_none_and_no_cloud_has_the_default() {
        let data = GuestData::of(&vm());
        assert_eq!(document(&data, "latest/user-data"), None);
        assert!(document(&data, "user-data").unwrap().starts_with("#cloud-config"));
    }
}
