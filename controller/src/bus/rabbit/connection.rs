//! One connection to the broker: made within a time, watched, and given up for good.
//!
//! Giving up shuts the socket: a connection whose other end has frozen would otherwise keep its thread
//! and its socket until the other end comes back.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::tcp::AsyncTcpStream;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use nix::sys::socket::sockopt::{TcpNoDelay, TcpUserTimeout};
use nix::sys::socket::{Shutdown, setsockopt, shutdown};
use shared::id::ControllerId;
use tokio::net::lookup_host;

use super::settings::{self, Destination};

/// How long connecting may take, with the handshakes of TLS and AMQP.
const CONNECT: Duration = Duration::from_secs(15);
/// How long sent bytes may stay without an acknowledgement of the other end's kernel.
const UNACKNOWLEDGED_MS: u32 = 20_000;
/// How long closing in order may take.
const CLOSE: Duration = Duration::from_secs(3);

/// Why there is no connection. Never says a password.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// What is configured.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// The network, the broker, or what it answers.
    #[error("{place}: {source}")]
    Broker {
        place: String,
        #[source]
        source: lapin::Error,
    },
    /// Nobody answers.
    #[error("{place}: no answer within {} s", CONNECT.as_secs())]
    Silent { place: String },
}

/// A connection and its socket.
pub(super) struct Link {
    pub(super) connection: Connection,
    /// The host and port, for messages.
    pub(super) place: String,
    _socket: Guard,
}

/// The socket, once there is one.
type Socket = Arc<Mutex<Option<OwnedFd>>>;

/// Shuts the socket when it is dropped.
struct Guard(Socket);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It fails for one that is closed already.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Link {
    /// Connects as the controller `me`; `role` tells its connections apart in the broker's lists.
    pub(super) async fn open(destination: &Destination, me: ControllerId, role: &str) -> Result<Self, Error> {
        let uri = destination.uri.clone();
        let place = format!("{}:{}", uri.authority.host, uri.authority.port);
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("kring {me} {role}").into())
            .with_client_property("product".into(), "kring-controller".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let tls = destination.tls.clone();
        let socket = Socket::default();
        let guard = Guard(Arc::clone(&socket));
        let runtime =
            lapin::runtime::default_runtime().map_err(|source| Error::Broker { place: place.clone(), source })?;
        let connect = Connection::connector(
            uri,
            runtime,
            async move |uri: AMQPUri, runtime| {
                let authority = &uri.authority;
                let mut failed = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
                for address in lookup_host((authority.host.as_str(), authority.port)).await? {
                    let stream = match AsyncTcpStream::connect(&runtime, address).await {
                        Ok(stream) => stream,
                        Err(error) => {
                            failed = error;
                            continue;
                        }
                    };
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        let tcp = plain.get_ref();
                        // A message waits for no other one to share its packet.
                        let _ = setsockopt(tcp, TcpNoDelay, &true);
                        let _ = setsockopt(tcp, TcpUserTimeout, &UNACKNOWLEDGED_MS);
                        let own = tcp.as_fd().try_clone_to_owned()?;
                        *socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
                    }
                    return match &tls {
                        None => Ok(stream),
                        Some(tls) => Ok(stream.into_rustls(tls, &authority.host).await?),
                    };
                }
                Err(failed.into())
            },
            properties,
        );
        match tokio::time::timeout(CONNECT, connect).await {
            Ok(Ok(connection)) => Ok(Self { connection, place, _socket: guard }),
            Ok(Err(source)) => Err(Error::Broker { place, source }),
            Err(_) => Err(Error::Silent { place }),
        }
    }

    /// Closes in order, which waits for what was sent.
    pub(super) async fn close(self) {
        let _ = tokio::time::timeout(CLOSE, self.connection.close(200, "leaving".into())).await;
    }
}
