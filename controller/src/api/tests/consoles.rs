//! Consoles: from a ticket over a WebSocket to the host's agent and back.

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ServerConfig;
use serde_json::json;
use shared::api::vm::ConsoleLog;
use shared::id::VmId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::{self, Message};

use super::*;
use crate::messages::vm::{ConsoleRoute, GetConsoleLog, RouteConsole};

/// A gateway whose VMs are on the host that listens at the answered socket.
async fn gateway(host: HostId) -> (Gateway, TcpListener) {
    let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = agent.local_addr().unwrap().to_string();
    let gateway = Gateway::start(move |services| {
        services.serve(move |_, _: RouteConsole| {
            let address = address.clone();
            async move { Ok(ConsoleRoute { host_id: host, address }) }
        });
        services.serve(|_, m: GetConsoleLog| async move {
            Ok(ConsoleLog { text: format!("{:?}", m.range), offset: 0, next_offset: 0 })
        });
    })
    .await;
    (gateway, agent)
}

/// An agent that upgrades one connection and sends everything back in capitals.
async fn agent(gateway: &Gateway, host: HostId, listener: &TcpListener) -> String {
    let (certificate, key) = certificate(&gateway.pki, host);
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: kring-stream\r\n\r\nhello ")
        .await
        .unwrap();
    let mut piece = [0; 1000];
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        if piece[..n].contains(&b'.') {
            break;
        }
        stream.write_all(&piece[..n].to_ascii_uppercase()).await.unwrap();
    }
    // The console ends; the close of TLS says so.
    let _ = stream.shutdown().await;
    String::from_utf8(head).unwrap()
}

async fn ticket(gateway: &Gateway, vm: VmId) -> String {
    let reply = gateway.post(&format!("/v1/vms/{vm}/console"), json!({"kind": "serial"})).admin().send().await;
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()["path"].as_str().unwrap().to_string()
}

async fn open(
    gateway: &Gateway,
    path: &str,
) -> Result<tokio_tungstenite::WebSocketStream<TlsStream<TcpStream>>, tungstenite::Error> {
    use tungstenite::client::IntoClientRequest as _;
    let mut request = format!("ws://controller.kring{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "binary".parse().unwrap());
    let (socket, response) = tokio_tungstenite::client_async(request, gateway.connect(None).await).await?;
    assert_eq!(response.headers()["sec-websocket-protocol"], "binary");
    Ok(socket)
}

#[tokio::test]
async fn bytes_go_both_ways_until_the_console_ends() {
    let (host, vm) = (HostId::new(), VmId::new());
    let (gateway, listener) = gateway(host).await;
    let path = ticket(&gateway, vm).await;
    let user = async {
        let mut socket = open(&gateway, &path).await.unwrap();
        socket.send(Message::Binary("ls".into())).await.unwrap();
        let mut seen = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) => seen.extend_from_slice(&bytes),
                Message::Close(frame) => {
                    seen.extend_from_slice(format!("[{}]", frame.unwrap().reason).as_bytes());
                    break;
                }
                _ => {}
            }
            if seen.ends_with(b"LS") {
                socket.send(Message::Text(".".into())).await.unwrap();
            }
        }
        String::from_utf8(seen).unwrap()
    };
    let (seen, head) = tokio::join!(user, agent(&gateway, host, &listener));
    assert_eq!(seen, "hello LS[the console ended]");
    assert!(
        head.starts_with(&format!("GET /v1/vms/{vm}/console/serial HTTP/1.1")) && head.contains("kring-stream"),
        "{head}"
    );
    // The ticket is used up.
    let again = open(&gateway, &path).await.unwrap_err();
    assert!(matches!(again, tungstenite::Error::Http(response) if response.status() == 404));
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_a_problem_and_no_dead_socket() {
    let host = HostId::new();
    let (gateway, listener) = gateway(host).await;
    drop(listener);
    let path = ticket(&gateway, VmId::new()).await;
    let error = open(&gateway, &path).await.unwrap_err();
    let tungstenite::Error::Http(response) = error else { panic!("{error}") };
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
}

#[tokio::test]
async fn the_log_is_read_in_pieces() {
    let (gateway, _listener) = gateway(HostId::new()).await;
    let path = format!("/v1/vms/{}/console/log", VmId::new());
    let text =
        async |query: &str| gateway.get(&format!("{path}{query}")).admin().send().await.json()["text"].to_string();
    assert!(text("").await.contains("offset: None, max: 65536"));
    assert!(text("?offset=5&max=10").await.contains("offset: Some(5), max: 10"));
    for bad in ["?offset=-1", "?max=0", "?max=999999999", "?tail=5"] {
        assert_eq!(gateway.get(&format!("{path}{bad}")).admin().send().await.problem().0, 400, "{bad}");
    }
}
