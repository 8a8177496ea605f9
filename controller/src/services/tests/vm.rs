//! The life of a VM through the bus, with a played host: what is reserved on the way is given back at
//! the end, on both databases.

use shared::api::image::DiskFormat;
use shared::api::job::{Job, JobRef, JobState};
use shared::api::page::ListParams;
use shared::api::vm::{CreateNic, CreateVm as Body, StopVm as StopBody, Vm, VmState};
use shared::api::volume::{AttachVolume as AttachBody, CreateVolume as VolumeBody};
use shared::id::{VmId, VolumeId};
use shared::units::Bytes;
use shared::wire::Empty;
use shared::wire::host::StorageReport;
use shared::wire::image::ImageInfo;
use shared::wire::vm::{self as host, PowerState, VmReport};
use shared::wire::volume::DeleteVolume as DeleteOnHost;
use shared::{Code, Error};

use crate::bus::Request;
use crate::db;
use crate::messages::vm::{
    CreateVm, DeleteVm, ExpungeVm, GetVm, ListVms, PauseVm, RecoverVm, ResumeVm, StartVm, StopVm,
};
use crate::messages::volume::{AttachVolume, CreateVolume, DeleteVolume, DetachVolume};
use crate::services::testing::{TestSystem, systems};

/// Gives the seed's host room, and the seed's image a content.
async fn prepare(system: &TestSystem) {
    let (host, storage, image) = (system.seed.host.id, system.seed.storage.id, system.seed.image.id);
    let now = system.context.deps.clock.now();
    let prepared = system.context.deps.db.write(move |tx| {
        Box::pin(async move {
            let facts = shared::api::host::HostFacts { arch: "x86_64".to_string(), ..Default::default() };
            db::host::set_facts(tx, host, &facts, (4, Bytes::gib(4)), now).await?;
            let said =
                StorageReport { storage_id: storage, total: Bytes::gib(20), available: Bytes::gib(20), error: None };
            db::storage::report(tx, host, &said).await?;
            let (format, size, virtual_size) = (DiskFormat::Qcow2, Bytes::mib(100), Bytes::gib(1));
            let info = ImageInfo { format, sha256: "ab".repeat(32), size, virtual_size };
            db::image::set_ready(tx, image, &info).await.map(|_| ())
        })
    });
    prepared.await.unwrap();
}

fn vm(system: &TestSystem, name: &str, vcpus: u32) -> CreateVm {
    let body = Body {
        id: None,
        name: name.parse().unwrap(),
        image_id: system.seed.image.id,
        instance_type_id: None,
        vcpus: Some(vcpus),
        memory: Some(Bytes::gib(1)),
        root_size: Some(Bytes::gib(5)),
        nics: vec![CreateNic { network_id: system.seed.network.id, ip: None }],
        hostname: None,
        ssh_keys: Vec::new(),
        user_data: None,
        host_id: None,
        storage_id: None,
        auto_start: true,
        start: true,
    };
    CreateVm { id: VmId::new(), body }
}

async fn run(system: &TestSystem, message: impl Request<Reply = JobRef>) -> Job {
    let accepted = system.by_tenant(message).await.unwrap();
    system.end_of(accepted).await
}

async fn done(system: &TestSystem, message: impl Request<Reply = JobRef>) {
    let job = run(system, message).await;
    assert_eq!((job.state, &job.error), (JobState::Succeeded, &None), "{}", job.kind);
}

/// vCPUs, memory and storage that are promised on the host, and addresses that are leased.
async fn promised(system: &TestSystem) -> (u32, Bytes, Bytes, i64) {
    let mut conn = system.context.deps.db.read().await.unwrap();
    let capacity = db::host::get(&mut conn, system.seed.host.id).await.unwrap().unwrap().host.capacity;
    let share = db::storage::of_host(&mut conn, system.seed.storage.id, system.seed.host.id).await.unwrap().unwrap();
    let cards = db::nic::count_in(&mut conn, system.seed.network.id).await.unwrap();
    (capacity.vcpus_reserved, capacity.memory_reserved, share.reserved, cards)
}

const NOTHING: (u32, Bytes, Bytes, i64) = (0, Bytes(0), Bytes(0), 0);

async fn get(system: &TestSystem, id: VmId) -> Vm {
    system.by_tenant(GetVm { id }).await.unwrap()
}

fn report(vm_id: VmId, power: PowerState) -> VmReport {
    VmReport { vm_id, power, generation: 1 }
}

#[tokio::test]
async fn what_a_vm_holds_in_its_life_is_given_back_at_its_end() {
    for system in systems().await {
        prepare(&system).await;
        let (wanted, agent) = (vm(&system, "web", 2), &system.agent);
        let id = wanted.id;
        agent.will_answer::<host::EnsureVm>(Ok(report(id, PowerState::Running)));
        done(&system, wanted).await;
        assert_eq!(promised(&system).await, (2, Bytes::gib(1), Bytes::gib(5), 1));
        let running = get(&system, id).await;
        assert_eq!((running.state, running.host_id), (VmState::Running, Some(system.seed.host.id)));
        let q = Some(format!("nics.ip = \"{}\" and state = running", running.nics[0].ip));
        let found = system.by_tenant(ListVms { params: ListParams { q, ..Default::default() } }).await.unwrap();
        assert_eq!(found.items, [running]);

        agent.will_answer::<host::PauseVm>(Ok(report(id, PowerState::Paused)));
        done(&system, PauseVm { id }).await;
        agent.will_answer::<host::ResumeVm>(Ok(report(id, PowerState::Running)));
        done(&system, ResumeVm { id }).await;

        let body =
            VolumeBody { id: None, name: "data".parse().unwrap(), size: Bytes::gib(3), format: None, storage_id: None };
        let volume = system.by_tenant(CreateVolume { id: VolumeId::new(), body }).await.unwrap().id;
        agent.will_answer::<host::AttachVolume>(Ok(Empty {}));
        done(&system, AttachVolume { id: volume, body: AttachBody { vm_id: id } }).await;
        assert_eq!(promised(&system).await.2, Bytes::gib(8));
        agent.will_answer::<host::DetachVolume>(Ok(Empty {}));
        done(&system, DetachVolume { id: volume }).await;
        agent.will_answer::<DeleteOnHost>(Ok(Empty {}));
        done(&system, DeleteVolume { id: volume }).await;

        agent.will_answer::<host::StopVm>(Ok(report(id, PowerState::Stopped)));
        done(&system, StopVm { id, body: StopBody::default() }).await;
        assert_eq!(promised(&system).await, (0, Bytes(0), Bytes::gib(5), 1));
        agent.will_answer::<host::DeleteVm>(Ok(Empty {}));
        done(&system, DeleteVm { id }).await;
        done(&system, RecoverVm { id }).await;
        agent.will_answer::<host::EnsureVm>(Ok(report(id, PowerState::Running)));
        done(&system, StartVm { id }).await;
        agent.will_answer::<host::DeleteVm>(Ok(Empty {}));
        done(&system, DeleteVm { id }).await;
        agent.will_answer::<host::DeleteVm>(Ok(Empty {}));
        agent.will_answer::<DeleteOnHost>(Ok(Empty {}));
        done(&system, ExpungeVm { id }).await;
        assert_eq!(system.by_tenant(GetVm { id }).await.unwrap_err().code, Code::NotFound);
        assert_eq!(promised(&system).await, NOTHING);
    }
}

#[tokio::test]
async fn a_vm_that_its_host_cannot_make_leaves_nothing() {
    for system in systems().await {
        prepare(&system).await;
        system.agent.will_answer::<host::EnsureVm>(Err(Error::new(Code::NoSpace, "the disk is full")));
        system.agent.will_answer::<host::DeleteVm>(Ok(Empty {}));
        system.agent.will_answer::<DeleteOnHost>(Ok(Empty {}));
        let wanted = vm(&system, "web", 2);
        let id = wanted.id;
        let job = run(&system, wanted).await;
        assert_eq!((job.state, job.error.map(|e| e.code)), (JobState::Failed, Some(Code::NoSpace)));
        assert_eq!(system.by_tenant(GetVm { id }).await.unwrap_err().code, Code::NotFound);
        assert_eq!((promised(&system).await, job.cleanup_owed.len()), (NOTHING, 0));
    }
}

#[tokio::test]
async fn exactly_what_fits_is_placed_however_many_ask_at_once() {
    for system in systems().await {
        prepare(&system).await;
        let wanted: Vec<_> = (0..5).map(|n| vm(&system, &format!("vm{n}"), 2)).collect();
        for _ in 0..2 {
            system.agent.will_answer::<host::EnsureVm>(Ok(report(wanted[0].id, PowerState::Running)));
        }
        let jobs = futures_util::future::join_all(wanted.into_iter().map(|message| run(&system, message))).await;
        let made = jobs.iter().filter(|job| job.state == JobState::Succeeded).count();
        let refused = jobs.iter().filter(|job| job.error.as_ref().is_some_and(|e| e.code == Code::NoHostFits)).count();
        assert_eq!((made, refused), (2, 3));
        assert_eq!(promised(&system).await, (4, Bytes::gib(2), Bytes::gib(10), 2));
    }
}
