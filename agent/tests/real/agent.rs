//! An agent on the test's host, and commands to it as a controller would give them.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::app::App;
use agent::config::Config;
use agent::libvirt::Hypervisor;
use agent::libvirt::real::Libvirt;
use agent::service::Running;
use agent::task::TaskCx;
use shared::api::image::{DiskFormat, Firmware};
use shared::api::network::NetworkKind;
use shared::id::{HostId, NetworkId, NicId, StorageId, TaskId, VmId, VolumeId};
use shared::units::Bytes;
use shared::wire::host::StorageSpec;
use shared::wire::network::NetworkSpec;
use shared::wire::vm::{CloudInit, DiskSpec, EnsureVm, NicSpec, VmSpec};
use shared::wire::volume::VolumeSpec;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// An agent with a data folder of its own.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub agent: Running,
}

pub fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.agent.data_dir = dir.join("data");
    config.agent.run_dir = dir.join("run");
    config.agent.listen = ([127, 0, 0, 1], 0).into();
    config.libvirt.reconnect_s = 1;
    config.libvirt.call_timeout_s = 15;
    config.network.repair_s = 1;
    config
}

/// Starts an agent in `dir`, as it is after a join.
pub async fn start(dir: &Path) -> Running {
    start_with(config(dir)).await
}

pub async fn start_with(config: Config) -> Running {
    join(&config.agent.data_dir.join("identity"));
    let libvirt = Libvirt::start(&config.libvirt).unwrap();
    libvirt.wait_ready(Duration::from_secs(30)).await.unwrap();
    agent::service::start(config, Arc::new(libvirt)).await.unwrap()
}

fn join(dir: &Path) {
    if !dir.exists() {
        Authority::new().join(dir);
    }
}

/// The controllers' certificate authority.
pub struct Authority {
    pem: String,
    key_pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self { pem: ca.self_signed(&key).unwrap().pem(), key_pem: key.serialize_pem() }
    }

    /// Makes one that several hosts read from a folder.
    pub fn make(dir: &Path) {
        let new = Self::new();
        std::fs::write(dir.join("ca.key"), new.key_pem).unwrap();
        std::fs::write(dir.join("ca.pem"), new.pem).unwrap();
    }

    /// Reads what [`Authority::make`] has made.
    pub fn read(dir: &Path) -> Self {
        let text = |name| std::fs::read_to_string(dir.join(name)).unwrap();
        Self { pem: text("ca.pem"), key_pem: text("ca.key") }
    }

    /// Writes the identity of a new host.
    pub fn join(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let id = HostId::new();
        let issuer =
            rcgen::Issuer::from_ca_cert_pem(&self.pem, rcgen::KeyPair::from_pem(&self.key_pem).unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![shared::wire::host_dns_name(id)]).unwrap();
        let cert = leaf.signed_by(&key, &issuer).unwrap();
        for (name, text) in [
            ("key.pem", key.serialize_pem()),
            ("cert.pem", cert.pem()),
            ("ca.pem", self.pem.clone()),
            ("controllers", "https://192.0.2.1:1\n".into()),
            ("host-id", id.to_string()),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
}

impl Host {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::Builder::new().prefix("kring-real-").tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let agent = start_with(config).await;
        Self { dir, agent }
    }

    pub fn app(&self) -> &Arc<App> {
        &self.agent.app
    }

    pub fn hypervisor(&self) -> &dyn Hypervisor {
        self.agent.app.hypervisor.as_ref()
    }

    /// A VM of a network with its own copy of the guest's image, or with an empty disk.
    pub fn vm(&self, network: &NetworkSpec, ip: &str, image: Option<&Path>) -> VmSpec {
        let disk = self.disk("vda", image);
        VmSpec {
            vm_id: VmId::new(),
            name: "real".into(),
            vcpus: 1,
            memory: Bytes::mib(160),
            firmware: Firmware::Bios,
            disks: vec![disk],
            nics: vec![NicSpec {
                nic_id: NicId::new(),
                mac: format!("52:54:00:00:00:{:02x}", ip.rsplit('.').next().unwrap().parse::<u8>().unwrap()),
                ip: ip.parse().unwrap(),
                network: network.clone(),
            }],
            cloud_init: CloudInit {
                hostname: "real-guest".into(),
                ssh_keys: vec!["ssh-ed25519 AAAA real".into()],
                user_data: None,
            },
        }
    }

    /// A disk in the storage of the test.
    pub fn disk(&self, device: &str, image: Option<&Path>) -> DiskSpec {
        let storage = StorageSpec {
            storage_id: "01939f00-0000-7000-8000-00000000f001".parse::<StorageId>().unwrap(),
            path: self.dir.path().join("storage").display().to_string(),
            kind: Default::default(),
        };
        let mut volume = VolumeSpec {
            volume_id: VolumeId::new(),
            storage,
            format: DiskFormat::Qcow2,
            size: Bytes::mib(64),
            base: None,
        };
        if let Some(image) = image {
            let path = agent::storage::local::volume_path(&volume.storage, volume.volume_id, volume.format).unwrap();
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::copy(image, path).unwrap();
            // Byte 24 of a qcow2 header is the size that the guest sees.
            let mut header = [0; 32];
            std::fs::File::open(image).unwrap().read_exact(&mut header).unwrap();
            volume.size = Bytes(u64::from_be_bytes(header[24..].try_into().unwrap()));
        }
        DiskSpec { volume, device: device.into() }
    }

    /// What the guest has written to its serial line.
    pub fn console(&self, vm_id: VmId) -> String {
        let path = agent::cloud_init::vm_dir(&self.app().config.agent.data_dir, vm_id).join("serial.log");
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest has written a line with `text`.
    pub async fn console_says(&self, vm_id: VmId, text: &str) -> String {
        until(&format!("the guest writes {text:?}"), || {
            self.console(vm_id).lines().find(|l| l.contains(text)).map(str::to_string)
        })
        .await
    }
}

/// A context for one command.
pub fn cx() -> TaskCx {
    cx_within(Duration::from_secs(120), 1)
}

pub fn cx_within(limit: Duration, generation: u64) -> TaskCx {
    TaskCx::new(TaskId::new(), generation, Instant::now() + limit, CancellationToken::new())
}

pub fn ensure(vm: &VmSpec) -> EnsureVm {
    EnsureVm { vm: vm.clone(), start: true }
}

/// A network whose id ends in `n`.
pub fn network(kind: NetworkKind, n: u8) -> NetworkSpec {
    NetworkSpec {
        network_id: format!("01939f00-0000-7000-8000-0000ab12cd{n:02x}").parse::<NetworkId>().unwrap(),
        kind,
        cidr: format!("10.77.{n}.0/24").parse().unwrap(),
        gateway: Some(format!("10.77.{n}.1").parse().unwrap()),
        service_address: format!("10.77.{n}.2").parse().unwrap(),
        dns: vec![],
        mtu: 1400,
        uplink: None,
        vlan: None,
    }
}

/// Waits until `probe` finds something.
pub async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = probe() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), wait).await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}
