//! [`Hypervisor`] by libvirt: each method is one or a few calls on a thread of the pool.
//!
//! What looks at a VM's state or changes it takes its turn in the VM's lane; what only reads a
//! description (consoles, XML) or is about all domains does not. A call that defines, starts, halts,
//! lets go on or plugs in says before it acts how that is taken back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use shared::id::{VmId, VolumeId};
use shared::wire::event::AgentEvent;
use shared::wire::vm::{PowerState, VmReport, Whereabouts};
use tokio::sync::{Semaphore, broadcast, oneshot, watch as tokio_watch};
use virt::connect::Connect;

use super::cache::{Cache, NOT_YET};
use super::event::{Message, Sink, start_loop};
use super::lane::{Lanes, Place};
use super::metadata::Identity;
use super::migration::{self, Migration};
use super::pool::{Pool, TakeBack, Undo};
use super::watch::{self, Shared};
use super::xml::device::Disk;
use super::xml::domain::DomainSpec;
use super::{Consoles, Error, Hypervisor, Listing, ShutdownBy, Summary, Versions, abort, calls, disks, filters};
use crate::config::LibvirtConfig;

/// Messages of libvirt that may wait; beyond that a full list is compared instead.
const INBOX: usize = 4096;

/// How long the first attempt to connect may take: libvirt asks every QEMU what it can before it answers.
const FIRST_CONTACT: Duration = Duration::from_secs(60);

/// Migrations that are under way at a time, each with a thread of its own; more wait.
const MIGRATIONS: usize = 4;

/// libvirt on this host.
#[derive(Debug)]
pub struct Libvirt {
    shared: Arc<Shared>,
    pool: Pool,
    lanes: Lanes,
    migrations: Semaphore,
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
            connect: Mutex::new(Err(NOT_YET.into())),
            cache: Cache::default(),
            sink: Sink::new(queue),
            retry: Duration::from_secs(config.reconnect_s.max(1)),
        });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new().name("libvirt-watch".into()).spawn(move || watch::run(&watched, &inbox))?;
        let limit = Duration::from_secs(config.call_timeout_s.max(1));
        Ok(Self {
            shared,
            pool: Pool::new(config.pool)?,
            lanes: Lanes::default(),
            migrations: Semaphore::new(MIGRATIONS),
            limit,
        })
    }

    /// Waits until libvirt has told what there is. `limit` begins to run when the first attempt to
    /// connect has ended: a libvirt that was just started keeps its first caller waiting.
    ///
    /// # Errors
    /// [`Error::Unreachable`] with the reason, when that takes longer than `limit`.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), Error> {
        let mut changes = self.changes();
        let mut until = async |done: fn(&Result<Summary, String>) -> bool| {
            while !done(&self.summary()) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(FIRST_CONTACT, until(|s| s.as_ref().err().is_none_or(|e| e != NOT_YET))).await;
        let _ = tokio::time::timeout(limit, until(Result::is_ok)).await;
        // Whether the wait ended by itself shows in the summary.
        self.summary().map(|_| ()).map_err(|reason| Error::Unreachable { reason })
    }

    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        limit: Duration,
        place: Option<Place>,
        work: impl FnOnce(&Connect, &mut Undo) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let connect = self.shared.connection()?;
        let result = self.pool.run(name, limit, place, move |undo| work(&connect, undo)).await;
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

    /// A call about no VM, or one that needs no turn.
    async fn read<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(name, self.limit, None, move |c, _| work(c)).await
    }

    /// A call about one VM, in its turn.
    async fn quick<T: Send + 'static>(
        &self,
        vm_id: VmId,
        name: &'static str,
        work: impl FnOnce(&Connect, &mut Undo) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let place = self.turn(vm_id).await?;
        self.call(name, self.limit, Some(place), work).await
    }

    /// The same for a call during which QEMU starts or ends, or is asked what it can.
    async fn slow<T: Send + 'static>(
        &self,
        vm_id: VmId,
        name: &'static str,
        work: impl FnOnce(&Connect, &mut Undo) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let place = self.turn(vm_id).await?;
        self.call(name, self.slow_limit(), Some(place), work).await
    }

    /// Waits as long as the slowest call may take; a command's own deadline may end it before.
    async fn turn(&self, vm_id: VmId) -> Result<Place, Error> {
        // Without a connection there is nothing to wait for.
        self.shared.connection()?;
        self.lanes.enter(vm_id, self.slow_limit()).await
    }

    fn slow_limit(&self) -> Duration {
        self.limit * 4
    }

    /// What takes an effect back, over the connection that there is by then.
    fn later(&self, work: impl FnOnce(&Connect) -> Result<(), Error> + Send + 'static) -> TakeBack {
        let shared = Arc::clone(&self.shared);
        Box::new(move || work(&shared.connection()?))
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
        self.read("list", calls::list).await
    }

    async fn get(&self, vm_id: VmId) -> Result<Option<VmReport>, Error> {
        self.quick(vm_id, "read the state", move |c, _| calls::report(c, vm_id)).await
    }

    async fn identity(&self, vm_id: VmId) -> Result<Option<Identity>, Error> {
        self.quick(vm_id, "read the metadata", move |c, _| match calls::find(c, vm_id)? {
            Some(domain) => calls::identity(&domain),
            None => Ok(None),
        })
        .await
    }

    async fn identities(&self) -> Result<Vec<Identity>, Error> {
        self.read("read the metadata of all", calls::identities).await
    }

    async fn set_generation(&self, vm_id: VmId, generation: u64) -> Result<(), Error> {
        self.quick(vm_id, "write the metadata", move |c, _| calls::set_generation(c, vm_id, generation)).await
    }

    async fn define(&self, spec: &DomainSpec) -> Result<(), Error> {
        let (spec, vm_id) = (spec.clone(), spec.vm.vm_id);
        let take_back = self.later(move |c| calls::undefine(c, vm_id));
        // The first definition after a start of libvirt makes it ask QEMU what it can, which takes seconds.
        self.slow(vm_id, "define", move |c, undo| {
            if !calls::is_defined(c, vm_id)? {
                *undo = Some(take_back);
            }
            calls::define(c, &spec)
        })
        .await
    }

    async fn start(&self, vm_id: VmId) -> Result<(), Error> {
        let take_back = self.later(move |c| calls::destroy(c, vm_id));
        self.slow(vm_id, "start", move |c, undo| {
            if !calls::is_active(&calls::domain(c, vm_id)?)? {
                *undo = Some(take_back);
            }
            calls::start(c, vm_id)
        })
        .await
    }

    async fn shutdown(&self, vm_id: VmId, by: ShutdownBy) -> Result<(), Error> {
        self.quick(vm_id, "shut down", move |c, _| calls::shutdown(c, vm_id, by)).await
    }

    async fn destroy(&self, vm_id: VmId) -> Result<(), Error> {
        if let Some(place) = self.lanes.go_ahead(vm_id) {
            // What is under way may wait for a QEMU that does not answer: ending QEMU ends that call.
            let limit = self.slow_limit();
            tracing::info!(vm.id = %vm_id, "ends a VM while an earlier call about it is under way");
            if let Err(error) = self.call("destroy", limit, Some(place), move |c, _| calls::destroy(c, vm_id)).await {
                tracing::warn!(vm.id = %vm_id, %error, "the VM could not be ended yet; tried again after the earlier call");
            }
        }
        self.slow(vm_id, "destroy", move |c, _| calls::destroy(c, vm_id)).await
    }

    async fn suspend(&self, vm_id: VmId) -> Result<(), Error> {
        let take_back = self.later(move |c| calls::resume(c, vm_id));
        self.quick(vm_id, "suspend", move |c, undo| {
            if calls::is_in(c, vm_id, PowerState::Running)? {
                *undo = Some(take_back);
            }
            calls::suspend(c, vm_id)
        })
        .await
    }

    async fn resume(&self, vm_id: VmId) -> Result<(), Error> {
        let take_back = self.later(move |c| calls::suspend(c, vm_id));
        self.quick(vm_id, "resume", move |c, undo| {
            if calls::is_in(c, vm_id, PowerState::Paused)? {
                *undo = Some(take_back);
            }
            calls::resume(c, vm_id)
        })
        .await
    }

    async fn undefine(&self, vm_id: VmId) -> Result<(), Error> {
        self.quick(vm_id, "undefine", move |c, _| calls::undefine(c, vm_id)).await
    }

    async fn attach_disk(&self, vm_id: VmId, disk: &Disk) -> Result<(), Error> {
        let (disk, volume_id) = (disk.clone(), disk.volume_id);
        let take_back = self.later(move |c| {
            let out = disks::detach(c, vm_id, volume_id)?;
            if !out {
                tracing::warn!(vm.id = %vm_id, volume.id = %volume_id, "the guest was asked to let go of a disk");
            }
            Ok(())
        });
        self.quick(vm_id, "attach", move |c, undo| {
            if disks::is_out(c, vm_id, volume_id)? {
                *undo = Some(take_back);
            }
            disks::attach(c, vm_id, &disk)
        })
        .await
    }

    async fn detach_disk(&self, vm_id: VmId, volume_id: VolumeId) -> Result<bool, Error> {
        self.quick(vm_id, "detach", move |c, _| disks::detach(c, vm_id, volume_id)).await
    }

    async fn disk_paths(&self) -> Result<Vec<PathBuf>, Error> {
        self.read("read the disks of all", calls::disk_paths).await
    }

    async fn dumpxml(&self, vm_id: VmId) -> Result<String, Error> {
        self.read("read the domain", move |c| calls::dumpxml(c, vm_id)).await
    }

    async fn consoles(&self, vm_id: VmId) -> Result<Consoles, Error> {
        self.read("read the consoles", move |c| calls::consoles(c, vm_id)).await
    }

    async fn prepare_incoming(&self) -> Result<(), Error> {
        self.read("define the network filters", filters::ensure).await
    }

    async fn migrate(&self, vm_id: VmId, plan: Migration) -> Result<(), Error> {
        let stopping = || Error::Unreachable { reason: "the agent is stopping".into() };
        let _turn = self.migrations.acquire().await.map_err(|_| stopping())?;
        let connect = self.shared.connection()?;
        let (answer, answered) = oneshot::channel();
        let work = move || {
            let moved = catch_unwind(AssertUnwindSafe(|| migration::migrate(&connect, vm_id, &plan)));
            let ended = moved.unwrap_or_else(|_| {
                Err(Error::Failed { call: "move the domain", message: "the call ended in a panic".into() })
            });
            // Whoever has stopped waiting looks where the domain is.
            let _ = answer.send(ended);
        };
        std::thread::Builder::new()
            .name("migrate".into())
            .spawn(work)
            .map_err(|e| Error::Failed { call: "move the domain", message: e.to_string() })?;
        answered.await.map_err(|_| stopping())?
    }

    async fn migration_progress(&self, vm_id: VmId) -> Result<Option<u8>, Error> {
        self.read("ask how far the migration is", move |c| migration::progress(c, vm_id)).await
    }

    async fn abort_migration(&self, vm_id: VmId) -> Result<(), Error> {
        self.read("end the migration", move |c| abort::abort(c, vm_id)).await
    }

    async fn whereabouts(&self, vm_id: VmId) -> Result<Whereabouts, Error> {
        self.quick(vm_id, "look where it is", move |c, _| migration::whereabouts(c, vm_id)).await
    }

    async fn remove_filters(&self) -> Result<(), Error> {
        self.read("remove the network filters", filters::remove).await
    }

    async fn versions(&self) -> Result<Versions, Error> {
        self.read("ask for versions", calls::versions).await
    }

    fn summary(&self) -> Result<Summary, String> {
        self.shared.cache.summary()
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
