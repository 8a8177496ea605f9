//! The places in memory, in the order in which they are looked at.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};

use shared::id::{ClusterId, HostId, StorageId};
use shared::units::Bytes;
use tokio::time::Instant;

use super::filter;
use crate::db::placement::{Place, Request};

/// Share that is left, in millionths, the largest first; hosts with the same in the order of their ids.
type Rank = (Reverse<u32>, HostId);

const MILLION: f64 = 1e6;

/// Every host, and those that take VMs by what they have left.
#[derive(Default)]
pub(super) struct Index {
    places: HashMap<HostId, Place>,
    open: BTreeSet<Rank>,
    open_in: HashMap<ClusterId, BTreeSet<Rank>>,
    /// The most processors and memory that a host which takes VMs has, or had since everything was read.
    largest: (u32, Bytes),
    /// Hosts that were chosen, and when; each is looked at again.
    taken: VecDeque<(Instant, HostId)>,
    old_at: Option<Instant>,
    outdated_at: Option<Instant>,
}

impl Index {
    /// Adds a host that is not there.
    pub(super) fn put(&mut self, place: Place) {
        if filter::is_open(&place) {
            let rank = rank(&place);
            self.open.insert(rank);
            self.open_in.entry(place.cluster_id).or_default().insert(rank);
            self.largest = (self.largest.0.max(place.vcpus.0), self.largest.1.max(place.memory.0));
        }
        self.places.insert(place.host_id, place);
    }

    /// Removes a host, if it is there.
    pub(super) fn remove(&mut self, host: HostId) -> Option<Place> {
        let place = self.places.remove(&host)?;
        let rank = rank(&place);
        self.open.remove(&rank);
        if let Some(of_cluster) = self.open_in.get_mut(&place.cluster_id) {
            of_cluster.remove(&rank);
            if of_cluster.is_empty() {
                self.open_in.remove(&place.cluster_id);
            }
        }
        Some(place)
    }

    /// The best places for a request, at most `most`.
    pub(super) fn best(&self, request: &Request, most: usize) -> Vec<(HostId, StorageId)> {
        let takes = |host: &HostId| filter::takes(self.places.get(host)?, request).map(|storage| (*host, storage));
        if let Some(host) = &request.host {
            return takes(host).into_iter().collect();
        }
        let ranked = match &request.cluster {
            None => Some(&self.open),
            Some(cluster) => self.open_in.get(cluster),
        };
        let enough = ranked.into_iter().flatten().take_while(|(Reverse(left), _)| self.may_suffice(*left, request));
        enough.filter_map(|(_, host)| takes(host)).take(most).collect()
    }

    /// Whether a host of which such a share is left can have enough for a request. The share is that of the scarcer
    /// of its processors and memory, so that one of them is no more than this share of the largest host's: where
    /// neither would be enough, no host behind it is looked at. So a full cloud refuses without looking at all of it.
    fn may_suffice(&self, left: u32, request: &Request) -> bool {
        let (vcpus, memory) = self.largest;
        let share = (f64::from(left) + 1.0) / MILLION;
        let of_vcpus = f64::from(vcpus) * share >= f64::from(request.vcpus);
        let of_memory = memory.0 as f64 * share >= request.memory.0 as f64;
        request.vcpus <= vcpus && request.memory <= memory && (of_vcpus || of_memory)
    }

    /// Counts a place as taken by a request.
    pub(super) fn take(&mut self, (host, storage): (HostId, StorageId), request: &Request) {
        let Some(mut place) = self.remove(host) else { return };
        place.vcpus.1 = place.vcpus.1.saturating_add(request.vcpus);
        place.memory.1 = place.memory.1 + request.memory;
        for (id, bytes) in &request.on {
            if let Some(storage) = place.storages.iter_mut().find(|s| s.storage_id == *id) {
                storage.reserved = storage.reserved + *bytes;
            }
        }
        if let Some(storage) = place.storages.iter_mut().find(|s| s.storage_id == storage) {
            storage.reserved = storage.reserved + request.disk;
        }
        self.put(place);
        self.taken.push_back((Instant::now(), host));
    }

    /// Every host.
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.places.values()
    }

    /// Whether nothing was ever read.
    pub(super) const fn is_unread(&self) -> bool {
        self.old_at.is_none()
    }

    /// From when on everything is to be read again.
    pub(super) const fn old_at(&mut self, at: Instant) {
        self.old_at = Some(at);
    }

    pub(super) fn is_old(&self) -> bool {
        self.old_at.is_none_or(|at| at <= Instant::now())
    }

    /// From when on nobody is placed by this any more: it became old, and nobody who asked had it read again.
    pub(super) const fn outdated_at(&mut self, at: Instant) {
        self.outdated_at = Some(at);
    }

    pub(super) fn is_outdated(&self) -> bool {
        self.outdated_at.is_some_and(|at| at <= Instant::now())
    }

    /// When the first of the chosen hosts is to be looked at, which is `after` it was chosen.
    pub(super) fn next_check(&self, after: std::time::Duration) -> Option<Instant> {
        self.taken.front().map(|(at, _)| *at + after)
    }

    /// The hosts that were chosen until `before`, each once.
    pub(super) fn checks(&mut self, before: Instant) -> BTreeSet<HostId> {
        let until = self.taken.partition_point(|(at, _)| *at <= before);
        self.taken.drain(..until).map(|(_, host)| host).collect()
    }
}

fn rank(place: &Place) -> Rank {
    (Reverse((filter::score(place) * MILLION) as u32), place.host_id)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::filter::testing::{place, request};
    use super::*;

    fn filled(hosts: u128) -> Index {
        let mut index = Index::default();
        (1..=hosts).for_each(|n| index.put(place(n)));
        index
    }

    #[test]
    fn those_who_come_together_choose_different_hosts_and_never_more_than_there_is() {
        let mut index = filled(10);
        let mut chosen: HashMap<HostId, u32> = HashMap::new();
        while let Some(best) = index.best(&request(), 8).first().copied() {
            index.take(best, &request());
            *chosen.entry(best.0).or_default() += 1;
            let (least, most) = (chosen.values().min().unwrap(), chosen.values().max().unwrap());
            assert!(chosen.len() < 10 || most - least <= 1, "{chosen:?}");
        }
        // 8 vcpus a host, 2 a VM.
        assert!(chosen.len() == 10 && chosen.values().all(|n| *n == 4), "{chosen:?}");
        assert_eq!(index.checks(Instant::now()).len(), 10);
        assert!(index.checks(Instant::now()).is_empty());
    }

    #[test]
    fn whoever_is_not_looked_at_would_not_have_taken_it() {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..200 {
            let mut index = Index::default();
            for n in 1..=60 {
                let (vcpus, memory) = ([2, 8, 64][random.random_range(0..3)], [4, 32, 512][random.random_range(0..3)]);
                let (of_vcpus, of_memory) = (random.random_range(0..=vcpus), random.random_range(0..=memory));
                let (vcpus, memory) = ((vcpus, of_vcpus), (Bytes::gib(memory), Bytes::gib(of_memory)));
                index.put(Place { vcpus, memory, ..place(n) });
            }
            let (vcpus, memory) = (random.random_range(1..70), Bytes::gib(random.random_range(1..600)));
            let request = Request { vcpus, memory, ..request() };
            let mut all: Vec<_> = index.places().filter(|place| filter::takes(place, &request).is_some()).collect();
            all.sort_by_key(|place| rank(place));
            let found: Vec<_> = index.best(&request, 60).into_iter().map(|(host, _)| host).collect();
            assert_eq!(found, all.iter().map(|place| place.host_id).collect::<Vec<_>>(), "{request:?}");
        }
    }

    #[test]
    fn a_host_is_found_by_cluster_and_by_name_and_not_when_it_is_gone() {
        let mut index = filled(3);
        let other = Place { cluster_id: ClusterId::from_uuid(uuid::Uuid::from_u128(2)), ..place(9) };
        index.put(other.clone());
        let hosts = |index: &Index, request: Request| -> Vec<HostId> {
            index.best(&request, 8).into_iter().map(|(host, _)| host).collect()
        };
        assert_eq!(hosts(&index, request()).len(), 4);
        assert_eq!(hosts(&index, Request { cluster: Some(other.cluster_id), ..request() }), [other.host_id]);
        assert_eq!(hosts(&index, Request { host: Some(place(2).host_id), ..request() }), [place(2).host_id]);
        index.remove(other.host_id);
        index.remove(other.host_id);
        assert!(hosts(&index, Request { cluster: Some(other.cluster_id), ..request() }).is_empty());
        assert!(index.open_in.len() == 1 && index.open.len() == 3);
        assert!(hosts(&index, Request { memory: Bytes::gib(9), ..request() }).is_empty());
    }
}
