//! The listeners: TCP, TLS, HTTP/1.1; bounded in number, time and size; drained at the end.
//!
//! Users and agents use the same port: a client certificate is asked for and may be left out. A
//! certificate of another authority is refused in the handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use super::front::Peer;
use super::{Api, Parts, router};
use crate::auth::ca;
use crate::auth::tls::peer_host;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 4096;
/// Pause after a failed accept: most often there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most header lines of a request.
const MAX_HEADERS: usize = 100;

/// Why the gateway cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] ca::Error),
}

/// A gateway that serves.
pub struct Server {
    api: Arc<Api>,
    address: SocketAddr,
    plain_address: Option<SocketAddr>,
}

impl Server {
    /// Listens and serves, and says that it is ready.
    ///
    /// # Errors
    /// See [`Error`]; nothing is served then.
    #[expect(clippy::unused_async, reason = "a listener is bound to the runtime that it is made in")]
    pub async fn start(parts: Parts) -> Result<Self, Error> {
        let acceptor = TlsAcceptor::from(parts.pki.server_config()?);
        let api = Api::new(parts);
        let config = &api.config.api;
        let (listener, address) = listen(config.listen)?;
        let plain = config.plain_listen.map(listen).transpose()?;
        let serving = Arc::new(Serving {
            api: Arc::clone(&api),
            router: router::router(Arc::clone(&api)),
            connections: Arc::new(Semaphore::new(config.max_connections)),
            handshakes: Semaphore::new(config.max_handshakes),
            http: http(&api),
        });
        api.tasks.spawn(api.metrics.clone().run(api.stop.clone()));
        api.tasks.spawn(Arc::clone(&serving).accept(listener, Some(acceptor)));
        let plain_address = plain.map(|(listener, address)| {
            api.tasks.spawn(serving.accept(listener, None));
            address
        });
        api.set_ready();
        Ok(Self { api, address, plain_address })
    }

    /// Where it serves HTTPS.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves HTTP on a loopback address.
    #[must_use]
    pub const fn plain_address(&self) -> Option<SocketAddr> {
        self.plain_address
    }

    /// The gateway, to say whether it is ready.
    #[must_use]
    pub const fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// Takes no further request, lets running ones end for at most `api.drain_s`, and ends streams.
    pub async fn shutdown(&self) {
        self.api.stop.cancel();
        self.api.tasks.close();
        self.api.tasks.wait().await;
    }
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart does not wait for connections of the process before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound().map_err(|source| Error::Listen { address, source })
}

fn http(api: &Api) -> http1::Builder {
    let config = &api.config.api;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout())
        .max_headers(MAX_HEADERS)
        // Also the buffer that bodies are read through.
        .max_buf_size(config.max_header_bytes.max(8192));
    http
}

struct Serving {
    api: Arc<Api>,
    router: Router,
    connections: Arc<Semaphore>,
    handshakes: Semaphore,
    http: http1::Builder,
}

impl Serving {
    async fn accept(self: Arc<Self>, listener: TcpListener, acceptor: Option<TlsAcceptor>) {
        let stop = self.api.stop.clone();
        let next = || async {
            // Beyond the bound, connections wait in the kernel.
            let place = Arc::clone(&self.connections).acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        while let Some(Some((place, accepted))) = stop.run_until_cancelled(next()).await {
            match accepted {
                Ok((stream, from)) => {
                    let (serving, acceptor) = (Arc::clone(&self), acceptor.clone());
                    self.api.tasks.spawn(serving.connection(stream, from, acceptor, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        _place: OwnedSemaphorePermit,
    ) {
        // Without it, small answers wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let address = from.ip();
        let Some(acceptor) = acceptor else { return self.serve(stream, Peer { address, host: None }).await };
        let handshake = async {
            let _turn = self.handshakes.acquire().await;
            timeout(self.api.config.api.handshake_timeout(), acceptor.accept(stream)).await
        };
        match self.api.stop.run_until_cancelled(handshake).await {
            Some(Ok(Ok(stream))) => {
                let host = stream.get_ref().1.peer_certificates().and_then(|chain| peer_host(chain.first()?));
                self.serve(stream, Peer { address, host }).await;
            }
            // Anybody can knock; the figures of handshakes are not worth a line each.
            Some(Ok(Err(error))) => tracing::debug!(client = %address, %error, "a TLS handshake failed"),
            Some(Err(_)) => tracing::debug!(client = %address, "a TLS handshake took too long"),
            None => {}
        }
    }

    /// Serves one connection; after `stop`, no further request on it.
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            self.router.clone().call(request)
        });
        let connection = self.http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            // How a connection ends is the client's business: most often it goes away.
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::trace!(client = %peer.address, %error, "a connection broke");
                }
            }
            () = self.api.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                if timeout(self.api.config.api.drain(), connection).await.is_err() {
                    tracing::warn!(client = %peer.address, "a request did not end in time and was cut off");
                }
            }
        }
    }
}
