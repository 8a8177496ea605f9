//! What one controller knows of the others at one moment, and what follows from it: who owns what, what may
//! begin, what a change asks for. Nothing here waits, or reads a clock or a database: the same rules run in
//! the controller ([`super::Ring`]) and, with simulated time, in the simulation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shared::id::ControllerId;
use shared::state::controller::ControllerState;
use uuid::Uuid;

use super::{HashRing, LEASE};
use crate::db::controller::{ControllerRow, Membership};

/// How long a controller must have been in touch with the database without a break before it takes others
/// for dead: after a restart of the database all of them were silent, and come back one after the other.
pub const JUDGES_AFTER: Duration = Duration::from_secs(6);

/// By how much a clock must be set before silence is not counted by it.
const SET_BY_MS: i64 = 1000;

/// Whether the database's clock was set, which was found to be off by so much: then being in touch with it, which
/// [`Heartbeats::dead`] asks for, begins anew, and whoever lives has touched its row by the new time before anybody is judged.
#[must_use]
pub const fn is_set(by_ms: i64) -> bool {
    by_ms.abs() >= SET_BY_MS
}

/// Whether somebody has last been heard of in the future, since the clock was set back: its silence is to begin now
/// ([`crate::db::controller::count_from_now`]).
#[must_use]
pub fn are_ahead(seen: &Membership) -> bool {
    seen.controllers.iter().any(|row| row.silent_ms < 0 && is_set(row.silent_ms))
}

/// Since when a controller knows of each one's last heartbeat, on a clock of its own that nobody sets.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats(BTreeMap<ControllerId, (i64, Duration)>);

impl Heartbeats {
    /// Notes what was seen at this moment.
    pub fn note(&mut self, seen: &Membership, now: Duration) {
        self.0.retain(|id, _| seen.controllers.iter().any(|row| row.id == *id));
        for row in &seen.controllers {
            let known = self.0.entry(row.id).or_insert((row.heartbeat_at, now));
            if known.0 != row.heartbeat_at {
                *known = (row.heartbeat_at, now);
            }
        }
    }

    /// Those who are taken for dead now, by a controller that has been in touch with the database for this long. Whatever
    /// the database's clock says: a lease that was given with the last heartbeat has run out.
    pub fn dead<'s>(
        &self,
        seen: &'s Membership,
        in_touch: Duration,
        now: Duration,
    ) -> impl Iterator<Item = &'s ControllerRow> {
        let over = move |row: &ControllerRow| self.0.get(&row.id).is_some_and(|(_, since)| now >= *since + LEASE);
        seen.controllers.iter().filter(move |row| in_touch >= JUDGES_AFTER && row.is_dead() && over(row))
    }
}

/// The time in which a controller may begin something, on a clock of its own that nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease(u64);

impl Lease {
    /// Without an end: nobody else could take over.
    pub const ENDLESS: Self = Self(u64::MAX);

    /// The lease of this length that a touch gives, counted from when the touch was sent: the database has
    /// seen it no earlier, so its clock for the others' patience began no earlier either.
    #[must_use]
    pub fn of(touch_sent: Duration, length: Duration) -> Self {
        Self(u64::try_from((touch_sent + length).as_millis()).unwrap_or(u64::MAX - 1))
    }

    /// Whether it is not over.
    #[must_use]
    pub const fn holds(self, now: Duration) -> bool {
        self.0 == u64::MAX || now.as_millis() <= self.0 as u128
    }

    /// As a number that [`Self::from_number`] takes.
    pub(super) const fn number(self) -> u64 {
        self.0
    }

    /// The lease of this number.
    pub(super) const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// Whether work on a resource may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It is owned here, and nobody else is busy with it.
    Now,
    /// It is owned here, and its old owner has not let go of it.
    Held,
    /// It is owned by another controller.
    Elsewhere,
}

/// What a change asks of this controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Controllers that are no more: who waits for their answers is told at once.
    pub gone: Vec<ControllerId>,
    /// Controllers that have ended and joined again since they were last seen: the answers that were waited for do not
    /// come either.
    pub restarted: Vec<ControllerId>,
    /// The generation, when it is a new one: what was lost is let go of, what was gained is taken up.
    pub generation: Option<u64>,
}

/// Everybody, as one controller has seen them.
#[derive(Clone, Debug, Default)]
pub struct View {
    generation: u64,
    ring: Arc<HashRing>,
    /// The ring before, when it is known.
    before: Option<(u64, Arc<HashRing>)>,
    /// Everyone who has a row, joining, active or draining, and the generation in which it joined.
    alive: BTreeMap<ControllerId, u64>,
    /// Those, besides this controller, that have not let go yet, and the generation up to which they have.
    unsettled: Vec<(ControllerId, u64)>,
}

impl View {
    /// A ring all of whose members have let go of what is not theirs.
    #[must_use]
    pub fn settled(generation: u64, ring: Arc<HashRing>) -> Self {
        let alive = ring.members().iter().map(|member| (*member, 0)).collect();
        Self { generation, ring, alive, ..Self::default() }
    }

    /// Whether there was a ring between this one and that of a generation that was seen: then the one before it is to be
    /// read, for whoever let go of what was theirs there may hold what became theirs later.
    #[must_use]
    pub const fn has_missed(&self, generation: u64) -> bool {
        generation > self.generation + 1
    }

    /// What the controller `me` knows after it has `seen` the others. `before` is the ring before this
    /// generation, when it [has not seen](Self::has_missed) that itself; `layout` lays members out.
    #[must_use]
    pub fn follow(
        &self,
        me: ControllerId,
        seen: &Membership,
        before: Option<(u64, &[ControllerId])>,
        mut layout: impl FnMut(&[ControllerId]) -> Arc<HashRing>,
    ) -> Self {
        let active = seen.controllers.iter().filter(|row| row.state == ControllerState::Active);
        let members: Vec<_> = active.map(|row| row.id).collect();
        let before = if self.generation == seen.generation {
            self.before.clone()
        } else if self.has_missed(seen.generation) {
            before.map(|(generation, members)| (generation, layout(members)))
        } else {
            (self.generation > 0).then(|| (self.generation, Arc::clone(&self.ring)))
        };
        let others = seen.controllers.iter().filter(|row| row.id != me && row.settled < seen.generation);
        Self {
            generation: seen.generation,
            ring: if self.ring.members() == members { Arc::clone(&self.ring) } else { layout(&members) },
            before,
            alive: seen.controllers.iter().map(|row| (row.id, row.joined)).collect(),
            unsettled: others.map(|row| (row.id, row.settled)).collect(),
        }
    }

    /// What going on from here to `next` asks for.
    #[must_use]
    pub fn change_to(&self, next: &Self) -> Change {
        let ended = self.alive.iter().filter(|(id, joined)| next.alive.get(id) != Some(joined)).map(|(id, _)| *id);
        let (restarted, gone) = ended.partition(|id| next.alive.contains_key(id));
        Change { gone, restarted, generation: (self.generation != next.generation).then_some(next.generation) }
    }

    /// The generation of the ring; 0 before joining.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The ring of those who own something.
    #[must_use]
    pub fn ring(&self) -> &HashRing {
        &self.ring
    }

    /// Every controller that lives, whether it owns something or not.
    #[must_use]
    pub fn alive(&self) -> impl ExactSizeIterator<Item = ControllerId> {
        self.alive.keys().copied()
    }

    /// Whether the controller `me` may begin to work on `id`, as far as the others go.
    #[must_use]
    pub fn begin(&self, me: ControllerId, id: Uuid) -> Begin {
        if self.ring.owner(id) != Some(me) {
            Begin::Elsewhere
        } else if self.unsettled.iter().any(|holder| self.may_hold(holder, id)) {
            Begin::Held
        } else {
            Begin::Now
        }
    }

    /// Whether somebody who has let go up to this generation may still be busy with `id`.
    fn may_hold(&self, (holder, settled): &(ControllerId, u64), id: Uuid) -> bool {
        match &self.before {
            Some((generation, ring)) if settled >= generation => ring.owner(id) == Some(*holder),
            // What it owned when it last let go is not known here.
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_counted_from_when_its_touch_was_sent() {
        let second = Duration::from_secs(1);
        let lease = Lease::of(second * 10, second * 2);
        assert!(lease.holds(second * 12) && !lease.holds(second * 12 + Duration::from_millis(1)));
        assert!(Lease::ENDLESS.holds(Duration::MAX));
        assert_eq!(Lease::from_number(lease.number()), lease);
    }

    #[test]
    fn a_change_names_who_is_gone_and_a_generation_that_is_new() {
        let ids: Vec<_> = (0..3).map(|n| ControllerId::from_uuid(Uuid::from_u128(n))).collect();
        let view = |generation, members: &[ControllerId]| View::settled(generation, Arc::new(HashRing::new(members)));
        let change = view(3, &ids).change_to(&view(4, &ids[..2]));
        assert_eq!(change, Change { gone: vec![ids[2]], generation: Some(4), ..Change::default() });
        assert_eq!(view(3, &ids).change_to(&view(3, &ids)), Change::default());
    }
}
