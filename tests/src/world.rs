//! What most tests need before they begin, made through the public API: hosts, an image, a network,
//! VMs and volumes. Names are numbered, so that a test may ask for as many as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::Context;
use shared::api::cluster::{Cluster, CreateCluster};
use shared::api::host::{Host, HostConnection};
use shared::api::image::{CreateImage, Image, ImageSource};
use shared::api::job::{Job, JobRef};
use shared::api::network::{CreateNetwork, Network, NetworkKind};
use shared::api::page::Page;
use shared::api::storage::{CreateStorage, Storage, StorageKind};
use shared::api::vm::{CreateNic, CreateVm, Vm};
use shared::api::volume::{CreateVolume, Volume};
use shared::api::zone::{CreateZone, Zone};
use shared::id::{HostId, ImageId, NetworkId, VmId, VolumeId};
use shared::name::Name;
use shared::state::vm::VmState;
use shared::units::Bytes;

use crate::client::Client;
use crate::sim::{self, HostSpec, Sim};
use crate::wait::eventually;

/// Makes things through the API.
pub struct World {
    /// The API, as admin.
    pub api: Client,
    /// The hosts.
    pub sim: Arc<Sim>,
    next: AtomicU32,
}

impl World {
    /// A world with nothing in it but what a new controller has.
    #[must_use]
    pub fn new(api: Client, sim: Arc<Sim>) -> Self {
        Self { api, sim, next: AtomicU32::new(1) }
    }

    /// A name that nothing else has.
    ///
    /// # Panics
    /// When `noun` cannot be a name.
    #[expect(clippy::expect_used, reason = "such a noun is a defect of the test")]
    pub fn name(&self, noun: &str) -> Name {
        let n = self.next.fetch_add(1, Relaxed);
        format!("{noun}-{n}").parse().expect("a noun that can be a name")
    }

    /// Zone, cluster and storage, unless the controller has made them at its first start.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn ground(&self) -> anyhow::Result<()> {
        let clusters: Page<Cluster> = self.api.get("/v1/clusters").await?;
        let cluster_id = match clusters.items.first() {
            Some(cluster) => cluster.id,
            None => {
                let zones: Page<Zone> = self.api.get("/v1/zones").await?;
                let zone_id = match zones.items.first() {
                    Some(zone) => zone.id,
                    None => {
                        let body = CreateZone { id: None, name: self.name("zone"), description: String::new() };
                        self.api.post::<Zone>("/v1/zones", &body).await?.id
                    }
                };
                let body = CreateCluster {
                    id: None,
                    name: self.name("cluster"),
                    zone_id,
                    description: String::new(),
                    cpu_overcommit: None,
                    memory_overcommit: None,
                };
                self.api.post::<Cluster>("/v1/clusters", &body).await?.id
            }
        };
        let storages: Page<Storage> = self.api.get("/v1/storages").await?;
        if storages.items.is_empty() {
            let body = CreateStorage {
                id: None,
                name: self.name("storage"),
                kind: StorageKind::Local,
                cluster_id,
                path: "/var/lib/kring/volumes".to_string(),
            };
            self.api.post::<Storage>("/v1/storages", &body).await?;
        }
        Ok(())
    }

    /// A host that has joined and is connected.
    ///
    /// # Errors
    /// When it is not connected in time.
    pub async fn host(&self) -> anyhow::Result<Arc<sim::Host>> {
        self.host_as(self.sim.next_spec()?).await
    }

    /// A host like this that has joined and is connected.
    ///
    /// # Errors
    /// When it is not connected in time.
    pub async fn host_as(&self, spec: HostSpec) -> anyhow::Result<Arc<sim::Host>> {
        let token = self.api.join_token().await?;
        let host = self.sim.join_as(&token.token, spec).await?;
        self.connected(host.id, HostConnection::Connected).await?;
        Ok(host)
    }

    /// Waits until a host's connection is this.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn connected(&self, id: HostId, wanted: HostConnection) -> anyhow::Result<Host> {
        eventually(&format!("host {id} becomes {wanted}"), async || {
            let host: Host = self.api.get(&format!("/v1/hosts/{id}")).await?;
            let reason = host.connection_reason.clone().unwrap_or_default();
            anyhow::ensure!(host.connection == wanted, "it is {} {reason}", host.connection);
            Ok(host)
        })
        .await
    }

    /// An image that is ready. A host must be there to download it.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn image(&self) -> anyhow::Result<Image> {
        let name = self.name("image");
        let body = self.image_body(&format!("http://images.example/{name}.qcow2"));
        let job: JobRef = self.api.post("/v1/images", &body).await?;
        self.api.succeed(&job).await?;
        Ok(self.api.get(&format!("/v1/images/{}", job.resource.id)).await?)
    }

    /// What to send for an image from an address.
    pub fn image_body(&self, url: &str) -> CreateImage {
        CreateImage {
            id: Some(ImageId::new()),
            name: self.name("image"),
            source: ImageSource::Url { url: url.to_string() },
            sha256: None,
            format: None,
            firmware: Default::default(),
        }
    }

    /// A network with 65,000 addresses that no other network has.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn network(&self) -> anyhow::Result<Network> {
        let n = self.next.fetch_add(1, Relaxed) % 256;
        self.network_in(&format!("10.{n}.0.0/16")).await
    }

    /// A network with these addresses.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn network_in(&self, cidr: &str) -> anyhow::Result<Network> {
        let body = CreateNetwork {
            id: Some(NetworkId::new()),
            name: self.name("network"),
            kind: NetworkKind::Nat,
            cidr: cidr.parse()?,
            cluster_id: None,
            gateway: None,
            uplink: None,
            vlan: None,
            dns: Vec::new(),
            mtu: None,
        };
        Ok(self.api.post("/v1/networks", &body).await?)
    }

    /// What to send for a VM of 1 processor and 256 MiB.
    pub fn vm_body(&self, image: &Image, network: &Network) -> CreateVm {
        CreateVm {
            id: Some(VmId::new()),
            name: self.name("vm"),
            image_id: image.id,
            instance_type_id: None,
            vcpus: Some(1),
            memory: Some(Bytes::mib(256)),
            root_size: None,
            nics: vec![CreateNic { network_id: network.id, ip: None }],
            hostname: None,
            ssh_keys: Vec::new(),
            user_data: None,
            host_id: None,
            storage_id: None,
            auto_start: true,
            start: true,
        }
    }

    /// A VM that runs.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn vm(&self, image: &Image, network: &Network) -> anyhow::Result<Vm> {
        self.vm_as(&self.vm_body(image, network)).await
    }

    /// This VM, after its creation has succeeded.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn vm_as(&self, body: &CreateVm) -> anyhow::Result<Vm> {
        let job: JobRef = self.api.post("/v1/vms", body).await?;
        self.api.succeed(&job).await?;
        Ok(self.api.get(&format!("/v1/vms/{}", job.resource.id)).await?)
    }

    /// A VM as it is now.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn get_vm(&self, id: VmId) -> anyhow::Result<Vm> {
        Ok(self.api.get(&format!("/v1/vms/{id}")).await?)
    }

    /// Waits until a VM is in this state.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn vm_becomes(&self, id: VmId, wanted: VmState) -> anyhow::Result<Vm> {
        eventually(&format!("vm {id} becomes {wanted}"), async || {
            let vm = self.get_vm(id).await?;
            anyhow::ensure!(vm.state == wanted, "it is {}", vm.state);
            Ok(vm)
        })
        .await
    }

    /// Sends a verb to a VM and gives the job.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn vm_verb(&self, id: VmId, verb: &str) -> anyhow::Result<JobRef> {
        let path = format!("/v1/vms/{id}/{verb}");
        Ok(self.api.post(&path, &serde_json::json!({})).await?)
    }

    /// Sends a verb to a VM and waits until its job has succeeded.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn vm_do(&self, id: VmId, verb: &str) -> anyhow::Result<Job> {
        let job = self.vm_verb(id, verb).await?;
        self.api.succeed(&job).await
    }

    /// Deletes and expunges a VM.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn remove_vm(&self, id: VmId) -> anyhow::Result<()> {
        let job: JobRef = self.api.delete(&format!("/v1/vms/{id}")).await?;
        self.api.succeed(&job).await.context("deleting")?;
        self.vm_do(id, "expunge").await.context("expunging")?;
        Ok(())
    }

    /// An empty data volume.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn volume(&self, size: Bytes) -> anyhow::Result<Volume> {
        let body =
            CreateVolume { id: Some(VolumeId::new()), name: self.name("volume"), size, format: None, storage_id: None };
        Ok(self.api.post("/v1/volumes", &body).await?)
    }

    /// Simulated host by id.
    ///
    /// # Errors
    /// When no simulated host has it.
    pub fn sim_host(&self, id: Option<HostId>) -> anyhow::Result<Arc<sim::Host>> {
        id.and_then(|id| self.sim.host(id)).context("no simulated host has this id")
    }
}
