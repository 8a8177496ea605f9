//! A guest that moves from one host to another and back while it runs: two agents, two libvirts, and what
//! crosses between them only by the agents' own connections.
//!
//! The test's own process plays the controller. Each host runs this program once more, with an agent, and
//! takes commands from files in a folder that all three see.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::agent::ops;
use ::agent::service::Running;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::api::image::{DiskFormat, Firmware};
use shared::api::network::NetworkKind;
use shared::api::storage::StorageKind;
use shared::id::{HostId, NicId, StorageId, VmId, VolumeId};
use shared::units::Bytes;
use shared::wire::AgentCommand;
use shared::wire::host::StorageSpec;
use shared::wire::vm::{
    AbandonMigration, CloudInit, DeleteVm, DiskSpec, EnsureVm, MigrateVm, NicSpec, PauseVm, PowerState,
    PrepareMigration, ResumeVm, Settle, SettleMigration, VmSpec, Whereabouts,
};
use shared::wire::volume::{DeleteVolume, VolumeSpec};
use shared::{Code, Error};

use crate::agent::{Authority, config, cx_within, network, start_with, until};
use crate::lab::{guest_image, on_two_hosts, sh};

/// How long a command may take; a guest is emulated, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(240);

#[derive(Serialize, Deserialize)]
struct Order {
    path: String,
    body: Value,
}

/// One host as the controller sees it.
struct Remote {
    dir: PathBuf,
    id: HostId,
    address: String,
}

impl Remote {
    async fn ready(dir: PathBuf) -> Self {
        let (id, address) = until("the agent serves", || {
            let text = std::fs::read_to_string(dir.join("ready")).ok()?;
            let (id, address) = text.split_once(' ')?;
            Some((id.parse().unwrap(), address.to_string()))
        })
        .await;
        Self { dir, id, address }
    }

    fn send<C: AgentCommand>(&self, command: &C) -> PathBuf {
        let n =
            std::fs::read_dir(&self.dir).unwrap().flatten().filter(|e| e.path().extension().is_some_and(|e| e == "in"));
        let path = self.dir.join(format!("{:03}.in", n.count()));
        let order = Order { path: C::PATH.into(), body: serde_json::to_value(command).unwrap() };
        put(&path, &order);
        path
    }

    async fn answer<C: AgentCommand>(&self, sent: &Path) -> Result<C::Reply, Error> {
        let path = sent.with_extension("out");
        let read = async {
            loop {
                if let Ok(text) = std::fs::read(&path) {
                    let outcome: Result<Value, Error> = serde_json::from_slice(&text).unwrap();
                    return outcome.map(|value| serde_json::from_value(value).unwrap());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, read).await.unwrap_or_else(|_| panic!("no answer to {}", sent.display()))
    }

    async fn run<C: AgentCommand>(&self, command: &C) -> Result<C::Reply, Error> {
        let sent = self.send(command);
        self.answer::<C>(&sent).await
    }

    async fn whereabouts(&self, vm_id: VmId, act: Settle) -> Whereabouts {
        self.run(&SettleMigration { vm_id, act }).await.unwrap()
    }

    /// What a guest has written to its serial line on this host.
    fn console(&self, vm_id: VmId) -> String {
        let path = ::agent::cloud_init::vm_dir(&self.dir.join("data"), vm_id).join("serial.log");
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The seconds that a guest has counted here.
    fn ticks(&self, vm_id: VmId) -> Vec<u64> {
        let console = self.console(vm_id);
        let numbers = console.lines().filter_map(|line| line.trim().strip_prefix("KRING-GUEST tick ")?.parse().ok());
        numbers.collect()
    }
}

fn put(path: &Path, value: &impl Serialize) {
    let temp = path.with_extension("tmp");
    std::fs::write(&temp, serde_json::to_vec(value).unwrap()).unwrap();
    std::fs::rename(temp, path).unwrap();
}

/// The host's side: an agent that does what the files say until there is one that says stop.
async fn serve(dir: PathBuf, n: usize) {
    let own = dir.join(n.to_string());
    for (inside, seen) in [(own.join("disk"), dir.join("local")), (dir.join("nas-server"), dir.join("nas"))] {
        std::fs::create_dir_all(&inside).unwrap();
        sh(&format!("mount --bind {} {}", inside.display(), seen.display()));
    }
    let mut config = config(&own);
    let address = sh("ip -4 -o addr show dev eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'");
    config.agent.listen = format!("{address}:0").parse().unwrap();
    Authority::read(&dir).join(&config.agent.data_dir.join("identity"));
    let agent = start_with(config).await;
    let ready = format!("{} {}", agent.app.identity.load().host_id, agent.address);
    std::fs::write(own.join("ready.tmp"), ready).unwrap();
    std::fs::rename(own.join("ready.tmp"), own.join("ready")).unwrap();
    let mut next = 0;
    let mut tasks = tokio::task::JoinSet::new();
    while !dir.join("stop").exists() {
        let path = own.join(format!("{next:03}.in"));
        if let Ok(text) = std::fs::read(&path) {
            next += 1;
            tasks.spawn(carry_out(agent.app.clone(), serde_json::from_slice(&text).unwrap(), path));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tasks.shutdown().await;
    finish(agent).await;
}

async fn carry_out(app: std::sync::Arc<::agent::app::App>, order: Order, path: PathBuf) {
    let prepared = ops::prepare(&order.path, &serde_json::to_vec(&order.body).unwrap()).unwrap();
    let cx = cx_within(LIMIT, 1);
    let cancelled = async {
        while !path.with_extension("cancel").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cx.cancel.cancel();
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = (prepared.run)(app, cx.clone()) => outcome,
        () = cancelled => unreachable!("it never ends"),
    };
    put(&path.with_extension("out"), &outcome);
}

async fn finish(agent: Running) {
    sh("for d in $(virsh list --name); do virsh destroy $d; done");
    agent.stop().await;
}

/// A VM with the guest's image on a storage.
fn vm(dir: &Path, kind: StorageKind, home: &Path) -> VmSpec {
    let (id, path) = match kind {
        StorageKind::Local => ("01939f00-0000-7000-8000-00000000f001", "local"),
        StorageKind::Shared => ("01939f00-0000-7000-8000-00000000f002", "nas"),
    };
    let storage =
        StorageSpec { storage_id: id.parse::<StorageId>().unwrap(), path: dir.join(path).display().to_string(), kind };
    let volume_id = VolumeId::new();
    std::fs::create_dir_all(home.join("volumes")).unwrap();
    let image = guest_image(false);
    let file = home.join("volumes").join(format!("{volume_id}.qcow2"));
    std::fs::copy(&image, &file).unwrap();
    let mut header = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open(&image).unwrap(), &mut header).unwrap();
    let size = Bytes(u64::from_be_bytes(header[24..].try_into().unwrap()));
    let volume = VolumeSpec { volume_id, storage, format: DiskFormat::Qcow2, size, base: None };
    let ip = if kind == StorageKind::Local { "10.77.40.10" } else { "10.77.40.11" };
    VmSpec {
        vm_id: VmId::new(),
        name: "mover".into(),
        vcpus: 1,
        memory: Bytes::mib(160),
        firmware: Firmware::Bios,
        disks: vec![DiskSpec { volume, device: "vda".into() }],
        nics: vec![NicSpec {
            nic_id: NicId::new(),
            mac: format!("52:54:00:00:40:{}", &ip[9..]),
            ip: ip.parse().unwrap(),
            network: network(NetworkKind::Nat, 40),
        }],
        cloud_init: CloudInit { hostname: "mover".into(), ssh_keys: vec![], user_data: None },
    }
}

/// Moves a VM and sees that its guest has gone on counting where it was; answers how long the move took.
async fn moves(from: &Remote, to: &Remote, vm: &VmSpec) {
    let vm_id = vm.vm_id;
    until("the guest counts", || (from.ticks(vm_id).len() > 2).then_some(())).await;
    let landing = to.run(&PrepareMigration { vm: vm.clone(), from: from.id }).await.unwrap();
    let command = MigrateVm { vm: vm.clone(), to: to.id, address: to.address.clone(), landing };
    let began = std::time::Instant::now();
    from.run(&command).await.unwrap();
    println!("moved in {} ms", began.elapsed().as_millis());
    let last = *from.ticks(vm_id).last().unwrap();
    let gone = Whereabouts { power: None, moving: false };
    assert_eq!(from.whereabouts(vm_id, Settle::Look).await, gone);
    assert!(to.whereabouts(vm_id, Settle::Look).await.is_here());
    until("the guest goes on counting", || (to.ticks(vm_id).last()? > &(last + 1)).then_some(())).await;
    let after = to.ticks(vm_id);
    assert!(after[0] >= last && after[0] <= last + 2, "{last} and then {after:?}");
    assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1), "{after:?}");
    assert!(!to.console(vm_id).contains("boot count"), "the guest was not started anew");
    // Once more, the target is left alone, and the source says that it has nothing to send.
    to.run(&PrepareMigration { vm: vm.clone(), from: from.id }).await.unwrap();
    assert_eq!(from.run(&command).await.unwrap_err().code, Code::NotFound);
    from.run(&AbandonMigration { vm_id }).await.unwrap();
    for disk in vm.disks.iter().filter(|disk| disk.volume.storage.kind == StorageKind::Local) {
        let volume_id = disk.volume.volume_id;
        from.run(&DeleteVolume { volume_id, storage: disk.volume.storage.clone() }).await.unwrap();
    }
}

#[test]
fn real_a_guest_moves_there_and_back() {
    on_two_hosts("migrate::real_a_guest_moves_there_and_back", serve, async |dir: PathBuf| {
        Authority::make(&dir);
        for folder in ["0", "1", "local", "nas", "nas-server"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        std::fs::write(dir.join("go"), "").unwrap();
        let (a, b) = (Remote::ready(dir.join("0")).await, Remote::ready(dir.join("1")).await);

        // With a disk of the host's own, which is copied.
        let local = vm(&dir, StorageKind::Local, &dir.join("0/disk"));
        let vm_id = local.vm_id;
        a.run(&EnsureVm { vm: local.clone(), start: true }).await.unwrap();
        // Nobody is ready to take it: it goes on where it is.
        let landing = b.run(&PrepareMigration { vm: local.clone(), from: a.id }).await.unwrap();
        b.run(&AbandonMigration { vm_id }).await.unwrap();
        let command = MigrateVm { vm: local.clone(), to: b.id, address: b.address.clone(), landing };
        let refused = a.run(&command).await.unwrap_err();
        assert!(
            matches!(refused.code, Code::HostUnreachable | Code::Forbidden | Code::HostFailed),
            "{}",
            refused.chain()
        );
        assert!(a.whereabouts(vm_id, Settle::Abort).await.is_here());
        moves(&a, &b, &local).await;
        moves(&b, &a, &local).await;

        // Cancelled on its way: it goes on where it is, and the other host is clean.
        let landing = b.run(&PrepareMigration { vm: local.clone(), from: a.id }).await.unwrap();
        let command = MigrateVm { vm: local.clone(), to: b.id, address: b.address.clone(), landing };
        let sent = a.send(&command);
        std::fs::write(sent.with_extension("cancel"), "").unwrap();
        let outcome = a.answer::<MigrateVm>(&sent).await;
        let here = a.whereabouts(vm_id, Settle::Abort).await;
        assert_eq!(outcome.is_err(), here.is_here(), "{outcome:?} {here:?}");
        if here.is_here() {
            until("nothing comes in any more", || Some(())).await;
            assert_eq!(b.whereabouts(vm_id, Settle::Look).await.power, None);
            b.run(&AbandonMigration { vm_id }).await.unwrap();
        }
        for host in [&a, &b] {
            host.run(&DeleteVm { vm_id }).await.unwrap();
        }

        // On a storage that both see; and paused, which it stays.
        let shared = vm(&dir, StorageKind::Shared, &dir.join("nas-server"));
        std::fs::write(
            dir.join("nas-server/.kring-storage"),
            r#"{"storage_id":"01939f00-0000-7000-8000-00000000f002"}"#,
        )
        .unwrap();
        let vm_id = shared.vm_id;
        a.run(&EnsureVm { vm: shared.clone(), start: true }).await.unwrap();
        moves(&a, &b, &shared).await;
        b.run(&PauseVm { vm_id }).await.unwrap();
        let landing = a.run(&PrepareMigration { vm: shared.clone(), from: b.id }).await.unwrap();
        b.run(&MigrateVm { vm: shared.clone(), to: a.id, address: a.address.clone(), landing }).await.unwrap();
        let there = a.whereabouts(vm_id, Settle::Look).await;
        assert!(there.is_here() && there.power == Some(PowerState::Paused), "{there:?}");
        a.run(&ResumeVm { vm_id }).await.unwrap();
        let before = a.ticks(vm_id).len();
        until("the guest counts again", || (a.ticks(vm_id).len() > before + 1).then_some(())).await;
        for host in [&a, &b] {
            host.run(&DeleteVm { vm_id }).await.unwrap();
        }
        // A file system of another storage is not touched.
        let mut other = shared.clone();
        other.disks[0].volume.storage.storage_id = StorageId::new();
        let refused = a.run(&EnsureVm { vm: other, start: true }).await.unwrap_err();
        assert!(
            refused.code == Code::Conflict && refused.message.contains("belongs to storage"),
            "{}",
            refused.chain()
        );
    });
}
