//! Filters and score: pure functions of a host and a request.
//!
//! The filters are one list, in which each has a name and a reason; a host takes a VM when all of them
//! keep it. A report counts for each what it drops, so that a refusal says why. The score orders the
//! rest: the host with the most left, as a share of what it has, comes first.

use shared::api::host::{HostAdminState, HostConnection};
use shared::api::vm::{FilterReport, PlacementReport};
use shared::id::StorageId;
use shared::units::Bytes;
use shared::{Code, Error};

use crate::db::placement::{Arch, Place, PlaceStorage, Request};

/// Hosts named in a filter's report.
const NAMED: usize = 10;

/// One reason for which a host may not take a VM.
struct Filter {
    name: &'static str,
    reason: fn(&Request) -> String,
    keep: fn(&Place, &Request) -> bool,
}

/// All of them, in the order in which a report tells of them.
const FILTERS: &[Filter] = &[
    Filter {
        name: "host",
        reason: |r| match r.not_host {
            None => "another host was asked for".to_string(),
            Some(_) => "another host was asked for, or the VM is on it".to_string(),
        },
        keep: |p, r| r.host.is_none_or(|host| host == p.host_id) && r.not_host != Some(p.host_id),
    },
    Filter {
        name: "network",
        reason: |_| "the networks are in another cluster".to_string(),
        keep: |p, r| r.cluster.is_none_or(|cluster| cluster == p.cluster_id),
    },
    Filter {
        name: "connection",
        reason: |_| "the host does not answer, or is being compared".to_string(),
        keep: |p, _| answers(p),
    },
    Filter {
        name: "admin_state",
        reason: |_| "the host is disabled or in maintenance".to_string(),
        keep: |p, _| is_enabled(p),
    },
    Filter { name: "arch", reason: |_| "the host has another architecture".to_string(), keep: |p, _| runs_images(p) },
    Filter {
        name: "uplink",
        reason: |r| format!("the host has not every interface that the networks lie on: {}", r.uplinks.join(", ")),
        keep: |p, r| r.uplinks.iter().all(|uplink| p.nics.split(' ').any(|nic| nic == uplink)),
    },
    Filter {
        name: "vcpus",
        reason: |r| format!("fewer than {} vcpus are left", r.vcpus),
        keep: |p, r| p.vcpus.0.saturating_sub(p.vcpus.1) >= r.vcpus,
    },
    Filter {
        name: "memory",
        reason: |r| format!("less than {} of memory is left", r.memory),
        keep: |p, r| p.memory.0 - p.memory.1 >= r.memory,
    },
    Filter {
        name: "storage",
        reason: |r| match r.storage {
            _ if !r.on.is_empty() => {
                "the VM's storages cannot be used there, or have no room for its disks".to_string()
            }
            None => format!("no storage has {} left", r.disk),
            Some(_) => format!("the storage cannot be used there, or has no {} left", r.disk),
        },
        keep: |p, r| storage(p, r).is_some(),
    },
];

/// The storage to use on a host that takes the VM.
pub(super) fn takes(place: &Place, request: &Request) -> Option<StorageId> {
    let kept = FILTERS.iter().all(|filter| (filter.keep)(place, request));
    kept.then(|| storage(place, request)).flatten().map(|storage| storage.storage_id)
}

/// Whether a host may take any VM at all.
pub(super) fn is_open(place: &Place) -> bool {
    answers(place) && is_enabled(place) && runs_images(place)
}

fn answers(place: &Place) -> bool {
    place.connection == HostConnection::Connected
}

fn is_enabled(place: &Place) -> bool {
    place.admin_state == HostAdminState::Enabled
}

fn runs_images(place: &Place) -> bool {
    place.arch == Arch::X86
}

/// What each filter drops of the hosts that those before it have kept.
pub(super) fn report<'a>(places: impl Iterator<Item = &'a Place>, request: &Request) -> PlacementReport {
    let mut report = PlacementReport {
        filters: FILTERS
            .iter()
            .map(|filter| FilterReport {
                filter: filter.name.to_string(),
                dropped: 0,
                reason: (filter.reason)(request),
                hosts: Vec::new(),
            })
            .collect(),
        ..Default::default()
    };
    for place in places {
        report.considered = report.considered.saturating_add(1);
        let dropping = FILTERS.iter().position(|filter| !(filter.keep)(place, request));
        if let Some(dropped) = dropping.and_then(|at| report.filters.get_mut(at)) {
            dropped.dropped = dropped.dropped.saturating_add(1);
            if dropped.hosts.len() < NAMED {
                dropped.hosts.push(place.host_id);
            }
        }
    }
    report
}

/// What to tell when no host is left.
pub(super) fn refusal(report: &PlacementReport) -> Error {
    let text = match report.considered {
        0 => "there are no hosts yet: let one join with `kring host join-token` and `kring-agent join`".to_string(),
        n => format!("none of {n} hosts can take the VM"),
    };
    Error { causes: causes(report), ..Error::new(Code::NoHostFits, text) }
}

/// What to tell when hosts that would have taken a VM do not any more, nor does any other.
#[must_use]
pub fn given_away(places: &[Place], request: &Request) -> Error {
    let text = "the last hosts that could take the VM were given to others meanwhile: ask for less, or add a host";
    Error { causes: causes(&report(places.iter(), request)), ..Error::new(Code::NoHostFits, text) }
}

/// What each filter dropped, in words.
fn causes(report: &PlacementReport) -> Vec<String> {
    let dropping = report.filters.iter().filter(|filter| filter.dropped > 0);
    dropping.map(|filter| format!("{}: {} dropped, {}", filter.filter, filter.dropped, filter.reason)).collect()
}

/// The storage with the most left, of those that have room.
fn storage(place: &Place, request: &Request) -> Option<PlaceStorage> {
    let left = |s: &PlaceStorage| ((s.total.0 as f64 * request.storage_overcommit) as u64).saturating_sub(s.reserved.0);
    if let Some((first, _)) = request.on.first() {
        let has =
            |(id, bytes): &(StorageId, Bytes)| place.storages.iter().any(|s| s.storage_id == *id && left(s) >= bytes.0);
        let first = place.storages.iter().copied().find(|s| s.storage_id == *first);
        return first.filter(|_| request.on.iter().all(has));
    }
    let wanted = place.storages.iter().copied().filter(|s| request.storage.is_none_or(|id| id == s.storage_id));
    wanted.filter(|s| left(s) >= request.disk.0).max_by_key(left)
}

/// 0 to 1: how much of the scarcer of processors and memory is left.
pub(super) fn score(place: &Place) -> f64 {
    let share = |total: f64, used: f64| if total > 0.0 { (total - used) / total } else { 0.0 };
    let vcpus = share(f64::from(place.vcpus.0), f64::from(place.vcpus.1));
    let memory = share(place.memory.0.0 as f64, place.memory.1.0 as f64);
    vcpus.min(memory)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(in crate::placement) fn place(n: u128) -> Place {
        let uuid = uuid::Uuid::from_u128;
        Place {
            host_id: shared::id::HostId::from_uuid(uuid(n)),
            cluster_id: shared::id::ClusterId::from_uuid(uuid(1)),
            admin_state: HostAdminState::Enabled,
            connection: HostConnection::Connected,
            arch: Arch::X86,
            nics: " eth0 eth1 ".to_string(),
            vcpus: (8, 0),
            memory: (shared::units::Bytes::gib(8), shared::units::Bytes(0)),
            storages: vec![PlaceStorage {
                storage_id: StorageId::from_uuid(uuid(7)),
                total: shared::units::Bytes::gib(100),
                reserved: shared::units::Bytes(0),
            }],
        }
    }

    pub(in crate::placement) fn request() -> Request {
        Request {
            vcpus: 2,
            memory: shared::units::Bytes::gib(2),
            disk: shared::units::Bytes::gib(10),
            cluster: None,
            host: None,
            storage: None,
            on: Vec::new(),
            not_host: None,
            uplinks: vec!["eth1".to_string()],
            storage_overcommit: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{place, request};
    use super::*;

    #[test]
    fn the_scarcer_of_processors_and_memory_counts() {
        let mut places: Vec<_> = (1..=3).map(place).collect();
        places[0].memory.1 = Bytes::gib(4);
        places[2].vcpus.1 = 6;
        let scores: Vec<_> = places.iter().map(score).collect();
        assert_eq!(scores, [0.5, 1.0, 0.25]);
        assert!(places.iter().all(|place| takes(place, &request()).is_some()));
    }

    #[test]
    fn the_storage_with_the_most_left_is_used() {
        let mut place = place(1);
        let other = StorageId::from_uuid(uuid::Uuid::from_u128(8));
        place.storages.push(PlaceStorage { storage_id: other, ..place.storages[0] });
        place.storages[0].reserved = Bytes::gib(1);
        assert_eq!(takes(&place, &request()), Some(other));
        let certain = Request { storage: Some(place.storages[0].storage_id), ..request() };
        assert_eq!(takes(&place, &certain), Some(place.storages[0].storage_id));
        place.storages[1].reserved = Bytes::gib(95);
        assert_eq!(takes(&place, &request()), Some(place.storages[0].storage_id));
    }

    #[test]
    fn a_vm_that_moves_needs_all_its_storages_and_another_host() {
        let mut place = place(1);
        let (local, nas) = (place.storages[0].storage_id, StorageId::from_uuid(uuid::Uuid::from_u128(8)));
        let moving = |on: &[(StorageId, u64)]| Request {
            on: on.iter().map(|(id, gib)| (*id, Bytes::gib(*gib))).collect(),
            ..request()
        };
        assert_eq!(takes(&place, &moving(&[(local, 90)])), Some(local));
        assert_eq!(takes(&place, &moving(&[(local, 101)])), None);
        assert_eq!(takes(&place, &moving(&[(local, 1), (nas, 0)])), None);
        place.storages.push(PlaceStorage { storage_id: nas, total: Bytes::gib(1), reserved: Bytes::gib(1) });
        assert_eq!(takes(&place, &moving(&[(nas, 0), (local, 1)])), Some(nas));
        let there = Request { not_host: Some(place.host_id), ..moving(&[(nas, 0)]) };
        assert_eq!(takes(&place, &there), None);
    }

    #[test]
    fn a_refusal_counts_what_each_filter_dropped() {
        let mut places: Vec<_> = (1..=8).map(place).collect();
        places[0].connection = HostConnection::Disconnected;
        places[1].admin_state = HostAdminState::Maintenance;
        places[2].vcpus.1 = 7;
        places[3].memory.1 = Bytes::gib(7);
        places[4].storages[0].reserved = Bytes::gib(95);
        places[5].storages.clear();
        places[6].arch = Arch::Other;
        places[7].nics = " eth0 eth10 ".to_string();
        assert!(places.iter().all(|place| takes(place, &request()).is_none()));
        let report = report(places.iter(), &request());
        let dropped: Vec<_> = report.filters.iter().map(|f| (f.filter.as_str(), f.dropped)).collect();
        let expected = [
            ("host", 0),
            ("network", 0),
            ("connection", 1),
            ("admin_state", 1),
            ("arch", 1),
            ("uplink", 1),
            ("vcpus", 1),
            ("memory", 1),
            ("storage", 2),
        ];
        assert_eq!(dropped, expected);
        let error = refusal(&report);
        assert_eq!((error.code, error.causes.len()), (Code::NoHostFits, 7));
    }
}
