//! The consistent-hash ring: a pure function from the set of members and an id to one member.
//!
//! Every controller must compute the same owner from the same members, in any version and on any
//! machine, so the hash is xxh3 of fixed bytes, never the standard library's hasher.

use shared::id::{ControllerId, ResourceId};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

/// Points of each member. With 4096, the busiest of 2 to 16 members has at most 1.10 times the mean
/// share of 100,000 ids (`make bench NAME=ring`); with 512 it has up to 1.15.
pub const POINTS: u32 = 4096;

/// The members of one generation, laid out on the ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashRing {
    /// Position of each point, ascending.
    points: Vec<u64>,
    /// Which of the members each point belongs to.
    owners: Vec<u16>,
    /// For each value of a position's first bits, the first point at or after it: points are spread
    /// evenly, so a look-up begins next to its end.
    index: Vec<u32>,
    members: Vec<ControllerId>,
}

impl HashRing {
    /// The ring of `members`; their order does not matter.
    #[must_use]
    pub fn new(members: &[ControllerId]) -> Self {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        let mut points: Vec<(u64, u16)> = (0_u16..)
            .zip(&members)
            .flat_map(|(owner, member)| (0..POINTS).map(move |n| (point(*member, n), owner)))
            .collect();
        points.sort_unstable();
        let (points, owners): (Vec<_>, Vec<_>) = points.into_iter().unzip();
        let buckets = points.len().next_power_of_two();
        let mut at = 0;
        let index = (0..buckets)
            .map(|bucket| {
                while points.get(at).is_some_and(|point| bucket_of(*point, buckets) < bucket) {
                    at += 1;
                }
                u32::try_from(at).unwrap_or(u32::MAX)
            })
            .collect();
        Self { points, owners, index, members }
    }

    /// The members, in order of their ids.
    #[must_use]
    pub fn members(&self) -> &[ControllerId] {
        &self.members
    }

    /// The owner of `id`: the member of the first point at or after the id's position. `None` when
    /// there are no members.
    #[must_use]
    pub fn owner(&self, id: Uuid) -> Option<ControllerId> {
        if let [] | [_] = self.members.as_slice() {
            return self.members.first().copied();
        }
        let position = xxh3_64(id.as_bytes());
        let from = *self.index.get(bucket_of(position, self.index.len()))? as usize;
        let steps = self.points.get(from..)?.iter().take_while(|point| **point < position).count();
        let owner = self.owners.get(from + steps).or(self.owners.first())?;
        self.members.get(usize::from(*owner)).copied()
    }

    /// The part of all positions that belongs to `member`, 0 to 1.
    #[must_use]
    pub fn share(&self, member: ControllerId) -> f64 {
        let Some(last) = self.points.last() else { return 0.0 };
        // What lies after the last point belongs to the first one.
        let mut before = *last;
        let mut total = 0_u128;
        for (point, owner) in self.points.iter().zip(&self.owners) {
            if self.members.get(usize::from(*owner)) == Some(&member) {
                total += u128::from(point.wrapping_sub(before));
            }
            before = *point;
        }
        if self.members.as_slice() == [member] { 1.0 } else { total as f64 / 2_f64.powi(64) }
    }
}

/// The first bits of a position, as many as `buckets`, a power of two, can tell apart.
fn bucket_of(position: u64, buckets: usize) -> usize {
    (position.checked_shr(64 - buckets.trailing_zeros()).unwrap_or(0)) as usize
}

fn point(member: ControllerId, n: u32) -> u64 {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(member.uuid().as_bytes());
    bytes[16..].copy_from_slice(&n.to_le_bytes());
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn members(seed: u64, n: u64) -> Vec<ControllerId> {
        (0..n)
            .map(|i| {
                ControllerId::from_uuid(Uuid::from_u64_pair(xxh3_64(&seed.to_le_bytes()) ^ i, seed.rotate_left(32) + i))
            })
            .collect()
    }

    fn ids(seed: u64, n: u64) -> impl Iterator<Item = Uuid> {
        (0..n).map(move |i| Uuid::from_u64_pair(seed, i))
    }

    #[test]
    fn owners_never_change_between_versions() {
        let ring =
            HashRing::new(&[Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3)].map(ControllerId::from_uuid));
        let owners: Vec<u128> = (0..12).map(|n| ring.owner(Uuid::from_u128(n)).unwrap().uuid().as_u128()).collect();
        assert_eq!(owners, [3, 1, 1, 1, 3, 1, 2, 3, 3, 1, 3, 3]);
    }

    #[test]
    fn an_empty_ring_owns_nothing() {
        assert_eq!(HashRing::new(&[]).owner(Uuid::nil()), None);
    }

    #[test]
    fn shares_add_up_to_one() {
        let members = members(7, 5);
        let ring = HashRing::new(&members);
        let total: f64 = members.iter().map(|member| ring.share(*member)).sum();
        assert!((total - 1.0).abs() < 1e-9, "{total}");
        assert_eq!((HashRing::new(&members[..1]).share(members[0]), ring.share(ControllerId::new())), (1.0, 0.0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn shares_are_even(seed: u64, n in 2_u64..=16) {
            let ring = HashRing::new(&members(seed, n));
            let mut load: HashMap<ControllerId, u64> = HashMap::new();
            for id in ids(seed, 20_000) {
                *load.entry(ring.owner(id).unwrap()).or_default() += 1;
            }
            let mean = 20_000.0 / n as f64;
            let max = *load.values().max().unwrap() as f64;
            prop_assert!(max / mean < 1.15, "max/mean {}", max / mean);
        }

        #[test]
        fn a_join_moves_keys_only_to_the_new_member(seed: u64, n in 1_u64..=12) {
            let all = members(seed, n + 1);
            let (before, after) = (HashRing::new(&all[..n as usize]), HashRing::new(&all));
            let newcomer = all[n as usize];
            let mut moved = 0_u64;
            for id in ids(seed, 10_000) {
                let (old, new) = (before.owner(id), after.owner(id));
                if old != new {
                    prop_assert_eq!(new, Some(newcomer));
                    moved += 1;
                }
            }
            prop_assert!(moved as f64 <= 1.3 * 10_000.0 / (n + 1) as f64, "{} moved", moved);
        }

        #[test]
        fn the_order_of_members_does_not_matter(seed: u64, n in 1_u64..=8) {
            let forward = members(seed, n);
            let backward: Vec<_> = forward.iter().rev().copied().collect();
            prop_assert_eq!(HashRing::new(&forward), HashRing::new(&backward));
        }
    }
}
