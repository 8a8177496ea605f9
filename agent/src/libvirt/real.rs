//! [`Hypervisor`] by libvirt: each method is one or a few calls on a thread of the pool.

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use shared::id::{VmId, VolumeId};
use shared::wire::event::AgentEvent;
use shared::wire::vm::{PowerState, VmReport};
use tokio::sync::{broadcast, watch as tokio_watch};
use virt::connect::Connect;

use super::cache::Cache;
use super::event::{Message, Sink, start_loop};
use super::metadata::Identity;
use super::pool::Pool;
use super::watch::{self, Shared};
use super::xml::device::Disk;
use super::xml::domain::DomainSpec;
use super::{Consoles, Digest, Error, Hypervisor, Listing, ShutdownBy, Versions, calls, disks};
use crate::config::LibvirtConfig;

/// Messages of libvirt that may wait; beyond that a full list is compared instead.
const INBOX: usize = 4096;

/// libvirt on this host.
#[derive(Debug)]
pub struct Libvirt {
    shared: Arc<Shared>,
    pool: Pool,
    limit: Duration,
}

impl Libvirt {
    /// Starts connecting to libvirt, and does not wait for it: until there is a connection every call
    /// is answered with [`Error::Unreachable`].
    ///
    /// # Errors
    /// When the kernel gives no threads or libvirt's library cannot be set up.
    pub fn start(config: &LibvirtConfig) -> std::io::Result<Self> {
        start_loop().map_err(std::io::Error::other)?;
        let (queue, inbox) = sync_channel(INBOX);
        let shared = Arc::new(Shared {
            uri: config.uri.clone(),
            connect: Mutex::new(Err("not connected yet".into())),
            cache: Cache::default(),
            sink: Sink::new(queue),
            retry: Duration::from_secs(config.reconnect_s.max(1)),
        });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new().name("libvirt-watch".into()).spawn(move || watch::run(&watched, &inbox))?;
        Ok(Self { shared, pool: Pool::new(config.pool)?, limit: Duration::from_secs(config.call_timeout_s.max(1)) })
    }

    /// Waits until libvirt has told what there is.
    ///
    /// # Errors
    /// [`Error::Unreachable`] with the reason, when that takes longer than `limit`.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), Error> {
        let mut changes = self.changes();
        let ready = async {
            while self.digest().is_err() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Whether the wait ended by itself shows in the digest.
        let _ = tokio::time::timeout(limit, ready).await;
        self.digest().map(|_| ()).map_err(|reason| Error::Unreachable { reason })
    }

    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        limit: Duration,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let connect = self.shared.connection()?;
        let result = self.pool.run(name, limit, move || work(&connect)).await;
        match &result {
            Err(error @ Error::Hung { .. }) => {
                // What a ping tells must not be older than this; the listing that the probe makes clears it.
                self.shared.cache.set_stale(&error.to_string());
                self.shared.sink.put(Message::Probe);
            }
            Err(Error::Unreachable { .. }) => self.shared.sink.put(Message::Probe),
            _ => {}
        }
        result
    }

    /// A call that changes or reads one thing.
    async fn quick<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(name, self.limit, work).await
    }

    /// A call during which QEMU starts or ends, or is asked what it can.
    async fn slow<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(name, self.limit * 4, work).await
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.shared.sink.put(Message::Stop);
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn list(&self) -> Result<Listing, Error> {
        self.quick("list", calls::list).await
    }

    async fn get(&self, vm_id: VmId) -> Result<Option<VmReport>, Error> {
        self.quick("read the state", move |c| calls::report(c, vm_id)).await
    }

    async fn identity(&self, vm_id: VmId) -> Result<Option<Identity>, Error> {
        self.quick("read the metadata", move |c| match calls::find(c, vm_id)? {
            Some(domain) => calls::identity(&domain),
            None => Ok(None),
        })
        .await
    }

    async fn identities(&self) -> Result<Vec<Identity>, Error> {
        self.quick("read the metadata of all", calls::identities).await
    }

    async fn set_generation(&self, vm_id: VmId, generation: u64) -> Result<(), Error> {
        self.quick("write the metadata", move |c| calls::set_generation(c, vm_id, generation)).await
    }

    async fn define(&self, spec: &DomainSpec) -> Result<(), Error> {
        let spec = spec.clone();
        // The first definition after a start of libvirt makes it ask QEMU what it can, which takes seconds.
        self.slow("define", move |c| calls::define(c, &spec)).await
    }

    async fn start(&self, vm_id: VmId) -> Result<(), Error> {
        self.slow("start", move |c| calls::start(c, vm_id)).await
    }

    async fn shutdown(&self, vm_id: VmId, by: ShutdownBy) -> Result<(), Error> {
        self.quick("shut down", move |c| calls::shutdown(c, vm_id, by)).await
    }

    async fn destroy(&self, vm_id: VmId) -> Result<(), Error> {
        self.slow("destroy", move |c| calls::destroy(c, vm_id)).await
    }

    async fn suspend(&self, vm_id: VmId) -> Result<(), Error> {
        self.quick("suspend", move |c| calls::suspend(c, vm_id)).await
    }

    async fn resume(&self, vm_id: VmId) -> Result<(), Error> {
        self.quick("resume", move |c| calls::resume(c, vm_id)).await
    }

    async fn undefine(&self, vm_id: VmId) -> Result<(), Error> {
        self.quick("undefine", move |c| calls::undefine(c, vm_id)).await
    }

    async fn attach_disk(&self, vm_id: VmId, disk: &Disk) -> Result<(), Error> {
        let disk = disk.clone();
        self.quick("attach", move |c| disks::attach(c, vm_id, &disk)).await
    }

    async fn detach_disk(&self, vm_id: VmId, volume_id: VolumeId) -> Result<bool, Error> {
        self.quick("detach", move |c| disks::detach(c, vm_id, volume_id)).await
    }

    async fn disk_paths(&self) -> Result<Vec<PathBuf>, Error> {
        self.quick("read the disks of all", calls::disk_paths).await
    }

    async fn dumpxml(&self, vm_id: VmId) -> Result<String, Error> {
        self.quick("read the domain", move |c| calls::dumpxml(c, vm_id)).await
    }

    async fn consoles(&self, vm_id: VmId) -> Result<Consoles, Error> {
        self.quick("read the consoles", move |c| calls::consoles(c, vm_id)).await
    }

    async fn versions(&self) -> Result<Versions, Error> {
        self.quick("ask for versions", calls::versions).await
    }

    fn digest(&self) -> Digest {
        self.shared.cache.digest()
    }

    fn power(&self, vm_id: VmId) -> Option<PowerState> {
        self.shared.cache.power(vm_id)
    }

    fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.shared.cache.events()
    }

    fn changes(&self) -> tokio_watch::Receiver<u64> {
        self.shared.cache.changes()
    }
}
