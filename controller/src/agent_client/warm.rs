//! Connections that stay open for a moment after a command, for the next one to the same host.
//!
//! Most of what an exchange costs is the handshake before it, so a burst of commands to a host shares
//! one. What is not used again within [`KEEP`] is closed: between bursts there is not one socket. A kept
//! connection belongs to its host alone and to nobody while it is used, so no host waits for another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::Result;
use shared::id::HostId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Answer, HostRef, Link, Request, before};

/// How long a connection stays open without being used.
const KEEP: Duration = Duration::from_secs(1);
/// A connection that was closed while it was kept breaks off within this.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Connections that are kept at a time. Each is a socket and some 20 KiB.
const MOST: usize = 1024;

struct Kept {
    link: Box<Link>,
    address: String,
    since: Instant,
}

#[derive(Default)]
struct Links {
    /// Of each host, the longest unused first.
    of: HashMap<HostId, Vec<Kept>>,
    count: usize,
    /// A task looks for old ones.
    watched: bool,
}

/// The connections to all hosts that are open without being used, and the way to new ones.
pub(super) struct Warm {
    tls: Arc<rustls::ClientConfig>,
    links: Mutex<Links>,
    requests: AtomicU64,
    opened: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Warm {
    pub(super) fn new(tls: Arc<rustls::ClientConfig>, tasks: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            tls,
            links: Mutex::default(),
            requests: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            tasks,
            stop,
        })
    }

    /// Requests that were sent, and connections that were made for them.
    pub(super) fn counted(&self) -> (u64, u64) {
        (self.requests.load(Relaxed), self.opened.load(Relaxed))
    }

    /// How to connect.
    pub(super) const fn tls(&self) -> &Arc<rustls::ClientConfig> {
        &self.tls
    }

    /// Sends `request` and reads the answer, all before `deadline`. When a kept connection breaks off at once,
    /// because the agent was restarted since, the request is sent once more on a new one. It may arrive twice
    /// then, which nothing minds: a command is known by its task, and everything else only asks.
    pub(super) async fn exchange(
        self: &Arc<Self>,
        host: &HostRef,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answer> {
        self.requests.fetch_add(1, Relaxed);
        before(deadline, host, async {
            if let Some(mut link) = self.take(host) {
                let began = Instant::now();
                match link.exchange(host, request, false).await {
                    Ok(answer) => {
                        self.keep(host, link);
                        return Ok(answer);
                    }
                    // It had been taken, and what became of it is to be asked.
                    Err(error) if began.elapsed() > AT_ONCE => return Err(error),
                    Err(_) => {}
                }
            }
            self.opened.fetch_add(1, Relaxed);
            let mut link = Box::new(Link::open(self.tls(), host).await?);
            let answer = link.exchange(host, request, request.is_last()).await?;
            if !request.is_last() {
                self.keep(host, link);
            }
            Ok(answer)
        })
        .await
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a host that was used last.
    fn take(&self, host: &HostRef) -> Option<Box<Link>> {
        let mut links = self.links();
        let kept = links.of.get_mut(&host.id)?.pop()?;
        links.count -= 1;
        (kept.address == host.address).then_some(kept.link)
    }

    fn keep(self: &Arc<Self>, host: &HostRef, link: Box<Link>) {
        if !link.is_open() || self.stop.is_cancelled() {
            return;
        }
        let mut links = self.links();
        if links.count >= MOST {
            return;
        }
        let kept = Kept { link, address: host.address.clone(), since: Instant::now() };
        links.of.entry(host.id).or_default().push(kept);
        links.count += 1;
        if !std::mem::replace(&mut links.watched, true) {
            self.tasks.spawn(Arc::clone(self).close_old());
        }
    }

    /// Closes what is not used any more, for as long as there is anything.
    async fn close_old(self: Arc<Self>) {
        loop {
            let stopped = self.stop.run_until_cancelled(tokio::time::sleep(KEEP)).await.is_none();
            let mut links = self.links();
            links.of.retain(|_, kept| {
                kept.retain(|one| !stopped && one.since.elapsed() < KEEP);
                !kept.is_empty()
            });
            links.count = links.of.values().map(Vec::len).sum();
            if links.count == 0 {
                // What the burst needed is not held on to.
                links.of.shrink_to_fit();
                links.watched = false;
                return;
            }
        }
    }
}
