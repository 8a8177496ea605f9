//! Opening a WebSocket over the same HTTP client, so that addresses, proxies and TLS are the same.

use reqwest::header::{CONNECTION, UPGRADE};
use reqwest::{Method, StatusCode};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Client, Failure};
use crate::error::{CliError, Result};

/// An open WebSocket.
pub type Socket = WebSocketStream<reqwest::Upgraded>;

impl Client {
    /// Opens the WebSocket at this path of the server. A ticket in the path is good once, so this is
    /// tried once.
    pub async fn websocket(&self, path: &str) -> Result<Socket> {
        let url = self
            .url()
            .join(path)
            .ok()
            .filter(|url| url.origin() == self.url().origin())
            .ok_or_else(|| CliError::Protocol(format!("the console's path {path:?} is not on this server")))?;
        let key = generate_key();
        let response = self
            .http
            .request(Method::GET, url)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", &key)
            .send()
            .await
            .map_err(|e| match self.connection_failure(&e) {
                Failure::Final(error) | Failure::Again { error, .. } => error,
            })?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(CliError::Problem(Box::new(self.problem(response).await)));
        }
        let accepted = response.headers().get("sec-websocket-accept").map(|v| v.as_bytes().to_vec());
        if accepted.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(CliError::Protocol("the console did not open as a WebSocket".into()));
        }
        let upgraded = response.upgrade().await.map_err(|e| CliError::Protocol(format!("the console closed: {e}")))?;
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
    }
}
