//! The floor below `hosts`: a bare program that asks every host for its sign of life as the controller does, by a
//! connection of its own with mutual TLS that goes on where the last one ended, and does nothing with the answer.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use controller::auth::tls::{Pki, agent_name};
use controller::clock::Clock;
use controller::config::PkiConfig;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use shared::id::HostId;
use shared::wire::host_dns_name;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::process;
use crate::cluster::Cluster;
use crate::{cmd, sim};

/// Hosts that are asked at a time.
const AT_ONCE: usize = 64;

/// Processor seconds of the bare program for each ping of these hosts.
pub(in super::super) async fn measure(cluster: &Cluster, hosts: &[Arc<sim::Host>]) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    // The keys of a controller that runs are its own to write.
    let pki = cluster.data_dir().join("pki");
    cmd::run("cp".as_ref(), &["-a".as_ref(), pki.as_os_str(), folder.path().join("pki").as_os_str()]).await?;
    let list: Vec<_> = hosts.iter().map(|host| format!("{} {}", host.id, host.address)).collect();
    std::fs::write(folder.path().join("hosts"), list.join("\n"))?;
    let program = cmd::program("kring-bench")?;
    let arguments: [&OsStr; 3] = ["floor-pings".as_ref(), "--folder".as_ref(), folder.path().as_os_str()];
    Ok(cmd::run(program.as_os_str(), &arguments).await?.trim().parse()?)
}

/// The bare program: asks every host twice, and answers what the second time took of the processor for each.
///
/// # Errors
/// When a host does not answer.
pub async fn run(folder: &Path) -> anyhow::Result<f64> {
    process::allow_files()?;
    let hosts: Vec<(HostId, String)> = std::fs::read_to_string(folder.join("hosts"))?
        .lines()
        .map(|line| {
            let (id, address) = line.split_once(' ').context("a host and its address")?;
            Ok((id.parse()?, address.to_string()))
        })
        .collect::<anyhow::Result<_>>()?;
    let pki = Pki::open(folder.join("pki"), &[], PkiConfig::default(), Clock::default())?;
    let tls = TlsConnector::from(pki.agent_client_config(hosts.len())?);
    let all = async || {
        stream::iter(&hosts)
            .map(|(id, address)| ping(&tls, *id, address))
            .buffer_unordered(AT_ONCE)
            .try_for_each(|()| async { Ok(()) })
            .await
    };
    // The first time there is nothing to go on with.
    all().await?;
    let before = process::cpu_seconds(std::process::id())?;
    all().await?;
    Ok((process::cpu_seconds(std::process::id())? - before) / hosts.len() as f64)
}

async fn ping(tls: &TlsConnector, id: HostId, address: &str) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream = tls.connect(agent_name(id)?, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/v1/ping").header("host", host_dns_name(id)).header("connection", "close");
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        anyhow::ensure!(answer.status().is_success(), "host {id} answers {}", answer.status());
        answer.into_body().collect().await?;
        anyhow::Ok(())
    };
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        // It may end right after the answer, which is there then.
        _ = &mut connection => answer.await,
    }
}
