//! Placement: which host takes a VM. A pure function of the hosts and the request.
//!
//! Filters drop hosts one after the other and count what they drop, so a refusal says why; a score
//! orders the rest: the host with the most left, as a share of what it has, comes first. Whether the
//! host still has it is decided by the reservation, in its own transaction.

use shared::api::host::{HostAdminState, HostConnection};
use shared::api::vm::{FilterReport, PlacementReport};
use shared::id::{ClusterId, HostId, StorageId};
use shared::units::Bytes;
use shared::{Code, Error};

use crate::db::placement::{Place, PlaceStorage};

/// What is to be placed.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) vcpus: u32,
    pub(super) memory: Bytes,
    /// Size of the root volume.
    pub(super) disk: Bytes,
    /// The cluster of the networks, when there are any.
    pub(super) cluster: Option<ClusterId>,
    /// A certain host.
    pub(super) host: Option<HostId>,
    /// Volume bytes that may be promised per byte of a storage.
    pub(super) storage_overcommit: f64,
}

/// Hosts named in a filter's report.
const NAMED: usize = 10;

/// The hosts that can take it, best first, with the storage to use; and what each filter dropped.
pub(super) fn choose(places: &[Place], request: &Request) -> (Vec<(HostId, StorageId)>, PlacementReport) {
    let mut report = PlacementReport { considered: count(places.len()), ..Default::default() };
    let mut left: Vec<&Place> = places.iter().collect();
    let mut filter = |name: &str, reason: String, keep: &dyn Fn(&Place) -> bool| {
        let (kept, dropped): (Vec<&Place>, Vec<&Place>) = left.iter().copied().partition(|place| keep(place));
        left = kept;
        report.filters.push(FilterReport {
            filter: name.to_string(),
            dropped: count(dropped.len()),
            reason,
            hosts: dropped.iter().take(NAMED).map(|place| place.host_id).collect(),
        });
    };
    filter("host", "another host was asked for".into(), &|p| request.host.is_none_or(|host| host == p.host_id));
    filter("network", "the networks are in another cluster".into(), &|p| {
        request.cluster.is_none_or(|c| c == p.cluster_id)
    });
    filter("connection", "the host does not answer, or is being compared".into(), &|p| {
        p.connection == HostConnection::Connected
    });
    filter("admin_state", "the host is disabled or in maintenance".into(), &|p| {
        p.admin_state == HostAdminState::Enabled
    });
    filter("arch", "the host has another architecture".into(), &|p| p.arch == "x86_64");
    filter("vcpus", format!("fewer than {} vcpus are left", request.vcpus), &|p| {
        p.vcpus.0.saturating_sub(p.vcpus.1) >= request.vcpus
    });
    filter("memory", format!("less than {} of memory is left", request.memory), &|p| {
        p.memory.0 - p.memory.1 >= request.memory
    });
    filter("storage", format!("no storage has {} left", request.disk), &|p| storage(p, request).is_some());
    let mut ranked: Vec<(f64, HostId, StorageId)> = left
        .into_iter()
        .filter_map(|place| Some((score(place), place.host_id, storage(place, request)?.storage_id)))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    report.chosen = ranked.first().map(|(_, host, _)| *host);
    (ranked.into_iter().map(|(_, host, storage)| (host, storage)).collect(), report)
}

/// What to tell when no host is left.
pub(super) fn refusal(report: &PlacementReport) -> Error {
    let text = match report.considered {
        0 => "there are no hosts yet: let one join with `kring host join-token` and `kring-agent join`".to_string(),
        n => format!("none of {n} hosts can take the VM"),
    };
    let mut error = Error::new(Code::NoHostFits, text);
    error.causes = report
        .filters
        .iter()
        .filter(|filter| filter.dropped > 0)
        .map(|filter| format!("{}: {} dropped, {}", filter.filter, filter.dropped, filter.reason))
        .collect();
    error
}

/// The storage with the most left, of those that have room.
fn storage(place: &Place, request: &Request) -> Option<PlaceStorage> {
    let left = |s: &PlaceStorage| {
        (s.total.0 as f64 * request.storage_overcommit) as u64
            - s.reserved.0.min((s.total.0 as f64 * request.storage_overcommit) as u64)
    };
    place.storages.iter().copied().filter(|s| left(s) >= request.disk.0).max_by_key(left)
}

/// 0 to 1: how much of the scarcer of processors and memory is left.
fn score(place: &Place) -> f64 {
    let share = |total: f64, used: f64| if total > 0.0 { (total - used) / total } else { 0.0 };
    let vcpus = share(f64::from(place.vcpus.0), f64::from(place.vcpus.1));
    let memory = share(place.memory.0.0 as f64, place.memory.1.0 as f64);
    vcpus.min(memory)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(n: u128) -> Place {
        let uuid = uuid::Uuid::from_u128;
        Place {
            host_id: HostId::from_uuid(uuid(n)),
            cluster_id: ClusterId::from_uuid(uuid(1)),
            admin_state: HostAdminState::Enabled,
            connection: HostConnection::Connected,
            arch: "x86_64".into(),
            vcpus: (8, 0),
            memory: (Bytes::gib(8), Bytes(0)),
            storages: vec![PlaceStorage {
                storage_id: StorageId::from_uuid(uuid(7)),
                total: Bytes::gib(100),
                available: Bytes::gib(100),
                reserved: Bytes(0),
            }],
        }
    }

    fn request() -> Request {
        Request {
            vcpus: 2,
            memory: Bytes::gib(2),
            disk: Bytes::gib(10),
            cluster: None,
            host: None,
            storage_overcommit: 1.0,
        }
    }

    #[test]
    fn the_emptiest_host_comes_first() {
        let mut places: Vec<_> = (1..=3).map(place).collect();
        places[0].memory.1 = Bytes::gib(4);
        places[2].vcpus.1 = 6;
        let (ranked, report) = choose(&places, &request());
        let order: Vec<_> = ranked.iter().map(|(host, _)| *host).collect();
        assert_eq!(order, [places[1].host_id, places[0].host_id, places[2].host_id]);
        assert_eq!(report.chosen, Some(places[1].host_id));
    }

    #[test]
    fn a_refusal_counts_what_each_filter_dropped() {
        let mut places: Vec<_> = (1..=7).map(place).collect();
        places[0].connection = HostConnection::Disconnected;
        places[1].admin_state = HostAdminState::Maintenance;
        places[2].vcpus.1 = 7;
        places[3].memory.1 = Bytes::gib(7);
        places[4].storages[0].reserved = Bytes::gib(95);
        places[5].storages.clear();
        places[6].arch = "aarch64".into();
        let (ranked, report) = choose(&places, &request());
        assert!(ranked.is_empty());
        let dropped: Vec<_> = report.filters.iter().map(|f| (f.filter.as_str(), f.dropped)).collect();
        let expected = [
            ("host", 0),
            ("network", 0),
            ("connection", 1),
            ("admin_state", 1),
            ("arch", 1),
            ("vcpus", 1),
            ("memory", 1),
            ("storage", 2),
        ];
        assert_eq!(dropped, expected);
        let error = refusal(&report);
        assert_eq!((error.code, error.causes.len()), (Code::NoHostFits, 6));
    }
}
