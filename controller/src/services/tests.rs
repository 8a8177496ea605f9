//! Infrastructure through the bus: what is made at once, and what all services share.

mod vm;
mod wire;

use shared::api::cluster::CreateCluster as ClusterBody;
use shared::api::instance_type::CreateInstanceType as TypeBody;
use shared::api::page::ListParams;
use shared::api::storage::{CreateStorage as StorageBody, StorageKind};
use shared::api::zone::CreateZone as ZoneBody;
use shared::id::{ClusterId, InstanceTypeId, StorageId, ZoneId};
use shared::units::Bytes;
use shared::wire::host::StorageReport;
use shared::{Code, Error};

use super::testing::{TestSystem, systems, systems_without, with_key};
use crate::config::{NEEDED, OPTIONAL};
use crate::messages::cluster::{CreateCluster, DeleteCluster, GetCluster};
use crate::messages::image::GetImage;
use crate::messages::instance_type::{CreateInstanceType, DeleteInstanceType, ListInstanceTypes};
use crate::messages::network::DeleteNetwork;
use crate::messages::storage::{CreateStorage, DeleteStorage, GetStorage, ListStorages};
use crate::messages::zone::{CreateZone, DeleteZone, GetZone, ListZones};

fn zone(name: &str) -> CreateZone {
    let body = ZoneBody { id: None, name: name.parse().unwrap(), description: "d".to_string() };
    CreateZone { id: ZoneId::new(), body }
}

fn cluster(name: &str, zone_id: ZoneId) -> CreateCluster {
    let (description, cpu_overcommit, memory_overcommit) = (String::new(), None, None);
    let body =
        ClusterBody { id: None, name: name.parse().unwrap(), zone_id, description, cpu_overcommit, memory_overcommit };
    CreateCluster { id: ClusterId::new(), body }
}

fn storage(name: &str, cluster_id: ClusterId, path: &str) -> CreateStorage {
    let (name, path) = (name.parse().unwrap(), path.to_string());
    let body = StorageBody { id: None, name, kind: StorageKind::Local, cluster_id, path };
    CreateStorage { id: StorageId::new(), body }
}

fn field(error: &Error) -> &str {
    error.fields.first().map_or("", |field| field.field.as_str())
}

#[tokio::test]
async fn every_service_registers_under_its_name_in_order() {
    assert!(super::ALL.is_sorted_by(|a, b| a.name < b.name));
    for system in systems().await {
        let served: Vec<_> = system.bus.services().map(|(name, _)| name).collect();
        let defined: Vec<_> = super::ALL.iter().map(|service| service.name).collect();
        assert_eq!(served, defined);
        let mut configurable = [NEEDED, OPTIONAL].concat();
        configurable.sort_unstable();
        assert_eq!(configurable, defined, "the configuration knows every service");
    }
}

#[tokio::test]
async fn a_disabled_service_registers_nothing_and_says_so_and_the_others_work() {
    for system in systems_without(&["image", "volume"]).await {
        let refused = system.by_tenant(GetImage { id: system.seed.image.id }).await.unwrap_err();
        let text = "the service `image` is disabled on this controller by services.disabled";
        assert_eq!((refused.code, refused.message.as_str()), (Code::ServiceDisabled, text));
        for (name, service) in system.bus.services() {
            assert_eq!(
                (service.disabled, service.messages.is_empty()),
                (matches!(name, "image" | "volume"), service.disabled),
                "{name}"
            );
        }
        assert!(
            !system.context.engine.kinds().iter().any(|kind| kind.starts_with("image.") || kind.starts_with("volume."))
        );
        assert_eq!(system.by_admin(ListZones::default()).await.unwrap().items.len(), 1);
    }
}

#[tokio::test]
async fn a_zone_is_made_once_listed_and_deleted_when_empty() {
    for system in systems().await {
        let wanted = zone("west");
        let made = system.by_admin(wanted.clone()).await.unwrap();
        assert_eq!(system.by_admin(wanted.clone()).await.unwrap(), made);
        let mut other = wanted.clone();
        other.body.description = "e".to_string();
        let conflict = system.by_admin(other).await.unwrap_err();
        assert!(conflict.code == Code::Conflict && conflict.message.contains("another description"), "{conflict}");
        assert_eq!(system.by_admin(zone("west")).await.unwrap_err().code, Code::NameTaken);
        let params = ListParams { sort: Some("-name".to_string()), ..Default::default() };
        let names: Vec<_> =
            system.by_admin(ListZones { params }).await.unwrap().items.into_iter().map(|z| z.name).collect();
        assert_eq!(names.iter().map(|n| n.as_str()).collect::<Vec<_>>(), ["z1", "west"]);
        assert_eq!(system.by_admin(DeleteZone { id: system.seed.zone.id }).await.unwrap_err().code, Code::InUse);
        system.by_admin(DeleteZone { id: made.id }).await.unwrap();
        assert_eq!(system.by_admin(GetZone { id: made.id }).await.unwrap_err().code, Code::NotFound);
        assert_eq!(system.event_paths().await, ["/zone/created", "/zone/deleted"]);
    }
}

#[tokio::test]
async fn a_key_is_one_request_and_a_dry_run_is_none() {
    for system in systems().await {
        let cx = with_key(&system.admin, "k", "h");
        let made = system.bus.call(&cx, zone("west")).await.unwrap();
        assert_eq!(system.bus.call(&cx, zone("west")).await.unwrap(), made);
        let cx = with_key(&system.admin, "k", "other");
        assert_eq!(system.bus.call(&cx, zone("east")).await.unwrap_err().code, Code::IdempotencyMismatch);
        let mut dry = system.admin.clone();
        dry.dry_run = true;
        assert_eq!(system.bus.call(&dry, zone("dry")).await.unwrap().name.as_str(), "dry");
        assert_eq!(system.bus.call(&dry, zone("west")).await.unwrap_err().code, Code::NameTaken);
        assert_eq!(system.by_admin(ListZones::default()).await.unwrap().items.len(), 2);
        assert_eq!(system.event_paths().await, ["/zone/created"]);
    }
}

#[tokio::test]
async fn a_cluster_takes_its_ratios_from_the_settings_when_it_is_made() {
    for system in systems().await {
        let wanted = cluster("c2", system.seed.zone.id);
        let made = system.by_admin(wanted.clone()).await.unwrap();
        assert_eq!((made.cpu_overcommit, made.memory_overcommit), (10.0, 1.0));
        let settings = &system.context.deps.settings;
        settings.install([("placement.cpu_overcommit".to_string(), 4.into())].into());
        assert_eq!(system.by_admin(wanted).await.unwrap(), made, "the same request after the default has changed");
        assert_eq!(system.by_admin(cluster("c3", system.seed.zone.id)).await.unwrap().cpu_overcommit, 4.0);
        let mut wild = cluster("c4", system.seed.zone.id);
        wild.body.memory_overcommit = Some(11.0);
        assert_eq!(field(&system.by_admin(wild).await.unwrap_err()), "memory_overcommit");
        assert_eq!(field(&system.by_admin(cluster("c4", ZoneId::new())).await.unwrap_err()), "zone_id");
        let used = system.by_admin(DeleteCluster { id: system.seed.cluster.id }).await.unwrap_err();
        assert_eq!(used.code, Code::InUse);
        system.by_admin(DeleteCluster { id: made.id }).await.unwrap();
        assert_eq!(system.by_admin(GetCluster { id: made.id }).await.unwrap_err().code, Code::NotFound);
    }
}

#[tokio::test]
async fn an_instance_type_has_sizes_that_a_machine_can_have() {
    for system in systems().await {
        let sized = |vcpus, memory| {
            let body = TypeBody { id: None, name: "small".parse().unwrap(), vcpus, memory };
            CreateInstanceType { id: InstanceTypeId::new(), body }
        };
        assert_eq!(field(&system.by_admin(sized(0, Bytes::gib(1))).await.unwrap_err()), "vcpus");
        assert_eq!(field(&system.by_admin(sized(513, Bytes::gib(1))).await.unwrap_err()), "vcpus");
        assert_eq!(field(&system.by_admin(sized(1, Bytes::mib(15))).await.unwrap_err()), "memory");
        assert_eq!(field(&system.by_admin(sized(1, Bytes(u64::MAX))).await.unwrap_err()), "memory");
        let made = system.by_admin(sized(2, Bytes::gib(1))).await.unwrap();
        let q = Some("memory >= 1GiB and vcpus = 2".to_string());
        let listed =
            system.by_tenant(ListInstanceTypes { params: ListParams { q, ..Default::default() } }).await.unwrap();
        assert_eq!(listed.items, std::slice::from_ref(&made));
        system.by_admin(DeleteInstanceType { id: made.id }).await.unwrap();
        assert_eq!(system.by_admin(DeleteInstanceType { id: made.id }).await.unwrap_err().code, Code::NotFound);
    }
}

async fn report(system: &TestSystem, id: StorageId) {
    let host = system.seed.host.id;
    let reported = system.context.deps.db.write(move |tx| {
        let said = StorageReport { storage_id: id, total: Bytes::gib(10), available: Bytes::gib(9), error: None };
        Box::pin(async move { crate::db::storage::report(tx, host, &said).await })
    });
    reported.await.unwrap();
}

#[tokio::test]
async fn storages_of_a_cluster_do_not_share_a_folder() {
    for system in systems().await {
        let cluster = system.seed.cluster.id;
        let wanted = storage("fast", cluster, "/srv/fast");
        let made = system.by_admin(wanted.clone()).await.unwrap();
        report(&system, made.id).await;
        let listed = system.by_admin(ListStorages::default()).await.unwrap();
        assert_eq!(listed.items.iter().map(|s| s.hosts.len()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(system.by_admin(wanted).await.unwrap(), system.by_admin(GetStorage { id: made.id }).await.unwrap());
        for path in ["/srv/fast", "/srv/fast/below", "/srv", "/var/lib/kring/volumes"] {
            let refused = system.by_admin(storage("other", cluster, path)).await.unwrap_err();
            assert_eq!(refused.code, Code::InUse, "{path}");
        }
        system.by_admin(storage("other", cluster, "/srv/faster")).await.unwrap();
        assert_eq!(field(&system.by_admin(storage("x", cluster, "/srv/../etc")).await.unwrap_err()), "path");
        assert_eq!(field(&system.by_admin(storage("x", ClusterId::new(), "/x")).await.unwrap_err()), "cluster_id");
        system.by_admin(DeleteStorage { id: made.id }).await.unwrap();
        assert_eq!(system.by_admin(GetStorage { id: made.id }).await.unwrap_err().code, Code::NotFound);
    }
}

#[tokio::test]
async fn a_dry_run_of_a_job_accepts_none() {
    for system in systems().await {
        let mut dry = system.tenant.clone();
        dry.dry_run = true;
        let id = system.seed.network.id;
        system.bus.call(&dry, DeleteNetwork { id }).await.unwrap();
        assert_eq!(system.context.engine.in_lanes(), 0);
        assert_eq!(system.event_paths().await, [""; 0]);
    }
}
