//! A way between two processes that a test can cut, in both directions or in one, slow down or break off:
//! a TCP proxy on 127.0.0.1.
//!
//! Bytes of a direction that is cut are kept until it is whole again, as TCP does when packets are lost;
//! neither side is told anything meanwhile.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How the way is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether bytes go from the client to the server.
    pub up: bool,
    /// Whether bytes go from the server to the client.
    pub down: bool,
    /// How long each piece of bytes is kept before it is sent on.
    pub delay: Duration,
}

impl Link {
    /// Whole and fast.
    pub const WHOLE: Self = Self { up: true, down: true, delay: Duration::ZERO };
    /// Cut in both directions.
    pub const CUT: Self = Self { up: false, down: false, delay: Duration::ZERO };
}

/// A running proxy. It ends when it is dropped.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    link: watch::Sender<Link>,
    /// Ends the connections of now.
    connections: Mutex<CancellationToken>,
    /// Lets the connections of now stand still for ever.
    standing: Mutex<CancellationToken>,
    stop: CancellationToken,
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

impl Proxy {
    /// A proxy in front of `server` (`address:port`).
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(server: &str) -> anyhow::Result<std::sync::Arc<Self>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let stop = CancellationToken::new();
        let proxy = std::sync::Arc::new(Self {
            address: listener.local_addr()?,
            link: watch::Sender::new(Link::WHOLE),
            connections: Mutex::new(stop.child_token()),
            standing: Mutex::default(),
            stop: stop.clone(),
        });
        let (of, server) = (std::sync::Arc::downgrade(&proxy), server.to_string());
        let tasks = TaskTracker::new();
        let inner = tasks.clone();
        tasks.spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let Ok((client, _)) = accepted else { continue };
                let Some(proxy) = of.upgrade() else { return };
                let (until, link) = (proxy.connections().clone(), proxy.link.subscribe());
                let still = proxy.standing.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let server = server.clone();
                inner.spawn(async move {
                    // Who broke off, and why, is told to both sides by their connections.
                    let _ = until.run_until_cancelled(join(client, &server, link, still)).await;
                });
            }
        });
        Ok(proxy)
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, CancellationToken> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the way, for connections that exist and for new ones.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Forgets the connections of now, as a firewall does: nothing passes on them any more, and neither side
    /// is told. New ones are as the way is.
    pub fn forget(&self) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *standing).cancel();
    }

    /// Breaks off the connections of now.
    pub fn break_off(&self) {
        let last = std::mem::replace(&mut *self.connections(), self.stop.child_token());
        last.cancel();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn join(
    client: TcpStream,
    server: &str,
    link: watch::Receiver<Link>,
    still: CancellationToken,
) -> std::io::Result<()> {
    whole(&mut link.clone(), Direction::Up).await;
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        pump(from_client, to_server, link.clone(), Direction::Up, &still),
        pump(from_server, to_client, link, Direction::Down, &still),
    )?;
    Ok(())
}

/// Waits until a direction is whole, and gives the delay.
async fn whole(link: &mut watch::Receiver<Link>, direction: Direction) -> Duration {
    let open = link
        .wait_for(|link| match direction {
            Direction::Up => link.up,
            Direction::Down => link.down,
        })
        .await;
    // The sender is gone with the proxy, which also ends this connection.
    open.map(|link| link.delay).unwrap_or_default()
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut link: watch::Receiver<Link>,
    direction: Direction,
    still: &CancellationToken,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Some(n) = still.run_until_cancelled(from.read(&mut buffer)).await else {
            return std::future::pending().await;
        };
        let n = n?;
        let delay = whole(&mut link, direction).await;
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_way_can_be_cut_in_one_direction_and_broken_off() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(&server.local_addr().unwrap().to_string()).await.unwrap();
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut buffer = [0; 1];
        client.write_all(b"a").await.unwrap();
        served.read_exact(&mut buffer).await.unwrap();
        proxy.set(Link { down: false, ..Link::WHOLE });
        served.write_all(b"b").await.unwrap();
        client.write_all(b"c").await.unwrap();
        served.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"c", "the other direction is whole");
        assert_eq!(client.try_read(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        proxy.set(Link::WHOLE);
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"b", "nothing is lost");
        proxy.forget();
        served.write_all(b"x").await.unwrap();
        let mut fresh = TcpStream::connect(proxy.address).await.unwrap();
        let (mut other, _) = server.accept().await.unwrap();
        fresh.write_all(b"y").await.unwrap();
        other.read_exact(&mut buffer).await.unwrap();
        assert_eq!(client.try_read(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        proxy.break_off();
        assert!(matches!(client.read(&mut buffer).await, Ok(0) | Err(_)));
        let mut again = TcpStream::connect(proxy.address).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        again.write_all(b"d").await.unwrap();
        served.read_exact(&mut buffer).await.unwrap();
    }
}
