//! A real host for benchmarks: a host of the lab (`tests/lab/host-ns.sh`), with libvirt and the built agent.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use shared::api::cluster::Cluster as ClusterRow;
use shared::api::host::{Host as HostRow, HostConnection};
use shared::api::page::Page;
use shared::api::storage::{CreateStorage, Storage, StorageKind};
use tempfile::TempDir;
use tokio::process::Child;

use crate::cluster::{Cluster, Setup};
use crate::cmd;
use crate::wait::eventually;

/// What a host is made of.
const PROGRAMS: &[&str] =
    &["/usr/sbin/libvirtd", "/usr/sbin/virtlogd", "/usr/bin/qemu-system-x86_64", "/usr/sbin/dnsmasq", "/usr/sbin/nft"];

/// Why no host can be made here.
#[must_use]
pub fn missing() -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    if !std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
        return Some("it needs root".to_string());
    }
    PROGRAMS.iter().find(|program| !Path::new(program).exists()).map(|program| format!("{program} is not installed"))
}

/// A file of the lab.
#[must_use]
pub fn lab(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab").join(name)
}

/// A host of the lab, taken down when this is dropped.
pub struct Lab {
    name: String,
    /// Where the host reaches this machine.
    pub gateway: IpAddr,
}

impl Lab {
    /// Makes a host.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn up() -> anyhow::Result<Self> {
        // Taken down also when it comes up half-way.
        let mut host =
            Self { name: format!("bench-{}", std::process::id()), gateway: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let said = cmd::run(lab("host-ns.sh").as_os_str(), &["up".as_ref(), host.name.as_ref()]).await?;
        let gateway = said.lines().find_map(|line| line.strip_prefix("gateway=")).context("a host has a gateway")?;
        host.gateway = gateway.parse()?;
        Ok(host)
    }

    /// Runs a program on the host and gives what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn run(&self, args: &[&OsStr]) -> anyhow::Result<String> {
        let on_host: [&OsStr; 2] = ["exec".as_ref(), self.name.as_ref()];
        cmd::run(lab("host-ns.sh").as_os_str(), &[&on_host, args].concat()).await
    }

    /// Runs a line of shell on the host.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn sh(&self, line: &str) -> anyhow::Result<String> {
        self.run(&["sh".as_ref(), "-ec".as_ref(), line.as_ref()]).await
    }

    /// Starts a program on the host.
    fn spawn(&self, args: &[&OsStr], log: &Path) -> anyhow::Result<Child> {
        let on_host: [&OsStr; 2] = ["exec".as_ref(), self.name.as_ref()];
        cmd::spawn(lab("host-ns.sh").as_os_str(), &[&on_host, args].concat(), log)
    }

    /// Id of the process on the host whose command line holds `text`, as it is seen from here.
    async fn pid(&self, text: &str) -> anyhow::Result<u32> {
        let all = cmd::run(lab("host-ns.sh").as_os_str(), &["pids".as_ref(), self.name.as_ref()]).await?;
        let line = all.lines().find(|line| line.contains(text)).with_context(|| format!("{text} does not run"))?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        cmd::run_to_end(lab("host-ns.sh").as_os_str(), &["down".as_ref(), self.name.as_ref()]);
    }
}

/// A controller and one real host with the real agent, both processes of their own.
pub struct Real {
    /// The controller.
    pub cluster: Cluster,
    /// The host.
    pub lab: Lab,
    /// Id of the agent's process.
    pub agent: u32,
    _agent: Child,
    folder: TempDir,
}

impl Real {
    /// Starts both and waits until the host is connected.
    ///
    /// # Errors
    /// When anything does not start.
    pub async fn start() -> anyhow::Result<Self> {
        let lab = Lab::up().await?;
        let cluster =
            Cluster::start_with(Setup { process: true, address: Some(lab.gateway), ..Setup::default() }).await?;
        let folder = tempfile::Builder::new().prefix("kring-bench-").tempdir_in("/var/tmp")?;
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        own_storage(&cluster, &folder.path().join("storage")).await?;
        let program = cmd::program("kring-agent")?;
        let config = folder.path().join("agent.toml");
        let data = folder.path().join("agent");
        std::fs::write(&config, format!("[agent]\ndata_dir = \"{}\"\n", data.display()))?;
        let token = cluster.api.join_token().await?.token;
        let arguments: [&OsStr; 7] = [
            "join".as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
            "--controller".as_ref(),
            cluster.url.as_ref(),
            "--token".as_ref(),
            token.as_ref(),
        ];
        lab.run(&[&[program.as_os_str()], &arguments[..]].concat()).await.context("joining")?;
        let serve: [&OsStr; 4] = [program.as_os_str(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
        let child = lab.spawn(&serve, &folder.path().join("agent.log"))?;
        eventually("the host is connected", async || {
            let hosts: Page<HostRow> = cluster.api.get("/v1/hosts").await?;
            let connected = hosts.items.iter().any(|host| host.connection == HostConnection::Connected);
            anyhow::ensure!(connected, "{}", std::fs::read_to_string(folder.path().join("agent.log"))?);
            Ok(())
        })
        .await?;
        let agent = lab.pid("kring-agent run").await?;
        cluster.set("host.ping_interval", 10.into()).await?;
        Ok(Self { cluster, lab, agent, _agent: child, folder })
    }

    /// Where the agent keeps what it has.
    #[must_use]
    pub fn agent_data(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// Stops the controller; the host goes with everything on it.
    ///
    /// # Errors
    /// When the controller cannot be stopped.
    pub async fn stop(self) -> anyhow::Result<()> {
        let Self { cluster, lab, _agent, folder, .. } = self;
        cluster.stop().await?;
        // First what writes to the folder.
        drop(lab);
        drop(folder);
        Ok(())
    }
}

/// Has volumes in this folder, and not where a host of this machine would have them.
async fn own_storage(cluster: &Cluster, path: &Path) -> anyhow::Result<()> {
    let given: Page<Storage> = cluster.api.get("/v1/storages").await?;
    for storage in given.items {
        cluster.api.delete::<serde_json::Value>(&format!("/v1/storages/{}", storage.id)).await?;
    }
    let clusters: Page<ClusterRow> = cluster.api.get("/v1/clusters").await?;
    let cluster_id = clusters.items.first().context("a cluster is made at the first start")?.id;
    let path = path.display().to_string();
    let body = CreateStorage { id: None, name: cluster.name("storage"), kind: StorageKind::Local, cluster_id, path };
    cluster.api.post::<Storage>("/v1/storages", &body).await?;
    Ok(())
}
