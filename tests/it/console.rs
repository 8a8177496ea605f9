//! Consoles: one ticket, one WebSocket, to the VM on its host and back; serial and VNC.

use futures_util::{SinkExt, StreamExt};
use harness::client::Call;
use harness::cluster::Cluster;
use harness::sim::{Sim, greeting, tls};
use reqwest::Method;
use rustls::pki_types::ServerName;
use serde_json::json;
use shared::api::vm::{ConsoleTicket, Vm};
use shared::error::Code;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::vm::ready;

/// A console.
pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn ticket(cluster: &Cluster, vm: &Vm, kind: &str) -> anyhow::Result<ConsoleTicket> {
    Ok(cluster.api.post(&format!("/v1/vms/{}/console", vm.id), &json!({ "kind": kind })).await?)
}

/// Opens the WebSocket as a browser does: with nothing but the ticket.
async fn attach(cluster: &Cluster, path: &str) -> anyhow::Result<Result<Socket, u16>> {
    attach_at(&cluster.url, &cluster.sim, path).await
}

/// The same at the controller with this address.
pub async fn attach_at(url: &str, sim: &Sim, path: &str) -> anyhow::Result<Result<Socket, u16>> {
    let config = tls::client_config(&sim.hosts()[0].identity().ca)?;
    let tcp = TcpStream::connect(url.trim_start_matches("https://")).await?;
    let name = ServerName::try_from(shared::wire::CONTROLLER_DNS_NAME)?;
    let stream = TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await?;
    let mut request = format!("wss://controller.kring{path}").into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", "binary".parse()?);
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(Ok(socket)),
        Err(tungstenite::Error::Http(response)) => Ok(Err(response.status().as_u16())),
        Err(error) => Err(error.into()),
    }
}

/// Reads until this has come.
pub async fn expect(socket: &mut Socket, text: &str) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).ends_with(text) {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => seen.extend_from_slice(&bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => anyhow::bail!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_the_console_of_its_vm_once() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let (vm, other) = (cluster.vm(&image, &network).await?, cluster.vm(&image, &network).await?);
    for kind in ["serial", "vnc"] {
        let path = ticket(&cluster, &vm, kind).await?.path;
        let mut socket = attach(&cluster, &path).await?.map_err(|status| anyhow::anyhow!("{kind}: {status}"))?;
        expect(&mut socket, &greeting(vm.id, kind)).await?;
        for n in 0..20 {
            let line = format!("line {n} of {}\n", "x".repeat(n * 100));
            socket.send(Message::Binary(line.clone().into())).await?;
            expect(&mut socket, &line).await?;
        }
        assert_eq!(attach(&cluster, &path).await?.err(), Some(404), "a ticket is good once");
        // Another VM's console at the same time is another one.
        let path = ticket(&cluster, &other, "serial").await?.path;
        let mut second = attach(&cluster, &path).await?.map_err(|status| anyhow::anyhow!("{status}"))?;
        expect(&mut second, &greeting(other.id, "serial")).await?;
        socket.close(None).await?;
    }
    cluster.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_or_cannot_have_a_console_is_told_why() -> anyhow::Result<()> {
    let (cluster, image, network) = ready().await?;
    let vm = cluster.vm(&image, &network).await?;
    let path = format!("/v1/vms/{}/console", vm.id);
    let nobody = cluster.api.with_token(None);
    let call = || Call::new(Method::POST, &path).json(&json!({ "kind": "serial" }));
    assert_eq!(nobody.send(call()).await?.status, 401);
    assert_eq!(attach(&cluster, "/v1/console/made-up").await?.err(), Some(404));
    // Without a WebSocket the ticket is not used up.
    let given = ticket(&cluster, &vm, "serial").await?.path;
    assert_eq!(nobody.send(Call::new(Method::GET, &given)).await?.status, 400);
    // The agent ends while the console is open: the user is told, and a new ticket opens a new one.
    let mut socket = attach(&cluster, &given).await?.map_err(|status| anyhow::anyhow!("{status}"))?;
    expect(&mut socket, &greeting(vm.id, "serial")).await?;
    cluster.sim_host(vm.host_id)?.restart();
    let last = loop {
        match socket.next().await {
            Some(Ok(Message::Close(frame))) => break frame,
            Some(Ok(_)) => {}
            other => anyhow::bail!("{other:?}"),
        }
    };
    assert!(last.is_some_and(|frame| !frame.reason.is_empty()));
    let again = ticket(&cluster, &vm, "serial").await?.path;
    assert!(attach(&cluster, &again).await?.is_ok());
    cluster.vm_do(vm.id, "stop").await?;
    let refused = ticket(&cluster, &vm, "serial").await.unwrap_err();
    let refused: harness::client::Failure = refused.downcast()?;
    assert_eq!(refused.code(), Code::InvalidState);
    cluster.stop().await
}
