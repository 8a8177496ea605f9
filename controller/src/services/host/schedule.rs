//! Which host is pinged when, and what is remembered of it in between. Rules only, without I/O.
//!
//! Each host has its own moment in the interval, by its id, so pings are spread evenly. What a host costs
//! between two pings is one small row here.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use shared::api::host::HostConnection;
use shared::id::{HostId, ResourceId};
use shared::wire::host::Pong;
use shared::{Code, Error};
use tokio::time::Instant;

use crate::agent_client::HostRef;
use crate::db::host::Reach;

/// Time between two pings of a host that has just joined: it is awaited.
const AWAITED: Duration = Duration::from_secs(1);
/// Every so many answers of a host the database is asked although they are the same: what is written
/// there may have changed, by an event that came late.
const DOUBTED: u32 = 10;

/// How often hosts are pinged, by the settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// Time between two pings. One that was missed is followed by the next after half of it.
    pub(super) interval: Duration,
    /// Pings in a row that may be missed.
    pub(super) misses: u32,
    /// Time after which a host is compared although nothing seems to have changed.
    pub(super) compare: Duration,
}

impl Rhythm {
    fn pause(&self, connection: HostConnection) -> Duration {
        match connection {
            HostConnection::Connecting => self.interval.min(AWAITED),
            HostConnection::Connected | HostConnection::Disconnected => self.interval,
        }
    }
}

/// What is remembered of a host.
#[derive(Clone, Debug)]
struct Known {
    reach: Reach,
    next: Instant,
    misses: u32,
    /// Pings since its last answer that failed because of something here.
    excused: u32,
    /// What it answered when all was last known to be as the database says.
    agreed: Option<Told>,
    /// Answers so far, begun with a number of its own so that not all are doubted at once.
    answers: u32,
    /// When it is compared whatever it answers: files on its disks have no part in the digest.
    compare_at: Instant,
    /// That it is lost was told to the owners of its VMs since its last answer.
    mourned: bool,
    /// A ping or what follows from it is on its way.
    busy: bool,
}

/// What a host answers of its VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// What they do.
    pub(super) digest: u64,
    /// How often that has changed: it may be what it was and not have been so in between.
    changes: Option<u64>,
}

/// What an answer, or none, asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: all is as it was, or it is too early to say.
    Nothing,
    /// The same process as before tells of changes. The database may say the same, because Kring made them.
    Changed(Told),
    /// The host or its agent is not the one that was compared, or that was long ago.
    Compare(Told),
    /// It does not answer any more, and why.
    Missed(String),
}

/// The hosts of one controller.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    hosts: HashMap<HostId, Known>,
    /// Those that are not busy, by their moments.
    due: BTreeSet<(Instant, HostId)>,
}

impl Schedule {
    /// Adds a host, or takes over how a known one is reached now.
    pub(super) fn put(&mut self, reach: Reach, rhythm: Rhythm, now: Instant) {
        let id = reach.id;
        let next = now + phase(id, rhythm.pause(reach.connection));
        match self.hosts.get_mut(&id) {
            Some(known) => {
                // One that has joined anew is not left to the moment of its earlier life.
                if known.next > next && reach.connection == HostConnection::Connecting {
                    self.due.remove(&(known.next, id));
                    known.next = next;
                    if !known.busy {
                        self.due.insert((next, id));
                    }
                }
                known.reach = reach;
            }
            None => {
                self.due.insert((next, id));
                let compare_at = now + phase(id, rhythm.compare);
                let answers = id.uuid().as_fields().0 % DOUBTED;
                let (misses, excused, agreed, mourned, busy) = (0, 0, None, false, false);
                let known = Known { reach, next, misses, excused, agreed, answers, compare_at, mourned, busy };
                self.hosts.insert(id, known);
            }
        }
    }

    /// Forgets a host.
    pub(super) fn remove(&mut self, id: HostId) {
        if let Some(known) = self.hosts.remove(&id) {
            self.due.remove(&(known.next, id));
        }
    }

    /// Forgets every host for which `stays` is false, and says which.
    pub(super) fn retain(&mut self, stays: impl Fn(HostId) -> bool) -> Vec<HostId> {
        let gone = self.hosts.extract_if(|id, _| !stays(*id)).map(|(id, _)| id).collect();
        self.due.retain(|(_, id)| stays(*id));
        gone
    }

    /// When the next host is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes hosts whose moment has come, so many at most. Each is busy until [`Self::done`].
    pub(super) fn take_due(&mut self, rhythm: Rhythm, now: Instant, most: usize) -> Vec<HostRef> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now)
        {
            self.due.remove(&(at, id));
            let Some(known) = self.hosts.get_mut(&id) else { continue };
            known.busy = true;
            // Counted from its moment, so that it keeps it however late the ping is; moments that are
            // over are left out.
            let pause = rhythm.pause(known.reach.connection);
            known.next = if at + pause > now { at + pause } else { now + pause };
            taken.push(HostRef { id, address: known.reach.address.clone() });
        }
        taken
    }

    /// What follows from the answer to a ping, or from there being none. `late`: that there is none was noticed late.
    pub(super) fn heard(
        &mut self,
        id: HostId,
        answer: shared::Result<Pong>,
        late: bool,
        rhythm: Rhythm,
        now: Instant,
    ) -> Found {
        let Some(known) = self.hosts.get_mut(&id) else { return Found::Nothing };
        match answer {
            Ok(pong) if pong.host_id != id => Found::Missed("another host answers at its address".to_string()),
            Ok(pong) => {
                (known.misses, known.excused, known.mourned) = (0, 0, false);
                known.found(&pong, now)
            }
            Err(error) => {
                let excused = known.excuses(&error, late, rhythm);
                known.misses = known.misses.saturating_add(u32::from(!excused));
                // Not by the database alone: whoever wrote that there may have died before the VMs were told.
                if known.reach.connection == HostConnection::Disconnected && known.mourned {
                    return Found::Nothing;
                }
                known.next = known.next.min(now + rhythm.interval / 2);
                if !excused && known.misses >= rhythm.misses { Found::Missed(error.chain()) } else { Found::Nothing }
            }
        }
    }

    /// The owners of its VMs know that it is lost.
    pub(super) fn mourned(&mut self, id: HostId) {
        if let Some(known) = self.hosts.get_mut(&id) {
            known.mourned = true;
        }
    }

    /// From then on the host is compared whatever it answers.
    pub(super) fn compare_at(&mut self, id: HostId, at: Instant) {
        if let Some(known) = self.hosts.get_mut(&id) {
            known.compare_at = at;
        }
    }

    /// Remembers that all was as the database says when the host answered this.
    pub(super) fn agrees(&mut self, id: HostId, told: Told) {
        if let Some(known) = self.hosts.get_mut(&id) {
            known.agreed = Some(told);
        }
    }

    /// The ping of a host and what followed from it are over. True when it is the next one that is due.
    pub(super) fn done(&mut self, id: HostId) -> bool {
        let Some(known) = self.hosts.get_mut(&id) else { return false };
        known.busy = false;
        let due = (known.next, id);
        self.due.insert(due);
        self.due.first() == Some(&due)
    }
}

impl Known {
    /// Whether a ping that failed is not counted as missed, because of something here. Being late excuses as many in a
    /// row as may be missed: it may have to do with the host after all.
    fn excuses(&mut self, error: &Error, late: bool, rhythm: Rhythm) -> bool {
        let ours = error.code == Code::Unavailable;
        self.excused = self.excused.saturating_add(u32::from(ours || late));
        ours || (late && self.excused <= rhythm.misses)
    }

    /// While libvirt does not answer there is nothing to compare with: the last known state stands.
    fn found(&mut self, pong: &Pong, now: Instant) -> Found {
        let Some(digest) = pong.digest else { return Found::Nothing };
        let told = Told { digest, changes: pong.changes };
        self.answers = self.answers.wrapping_add(1);
        let compared = (Some(pong.boot_id), Some(pong.agent_id));
        let as_compared = (self.reach.boot_id, self.reach.agent_id) == compared;
        if self.reach.connection != HostConnection::Connected || !as_compared || self.compare_at <= now {
            return Found::Compare(told);
        }
        let doubted = self.answers.is_multiple_of(DOUBTED);
        if self.agreed == Some(told) && !doubted { Found::Nothing } else { Found::Changed(told) }
    }
}

/// A host's own moment in the interval.
fn phase(id: HostId, interval: Duration) -> Duration {
    let hash = xxhash_rust::xxh3::xxh3_64(id.uuid().as_bytes());
    interval.mul_f64((hash >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const RHYTHM: Rhythm = Rhythm { interval: MINUTE, misses: 2, compare: Duration::from_secs(3600) };

    fn reach(id: HostId) -> Reach {
        let (boot_id, agent_id) = (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(2)));
        Reach { id, address: "a:1".to_string(), connection: HostConnection::Connected, boot_id, agent_id }
    }

    fn pong(host_id: HostId, digest: Option<u64>) -> Pong {
        let (boot_id, agent_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
        Pong { host_id, boot_id, agent_id, agent_version: String::new(), digest, changes: None, libvirt_error: None }
    }

    fn told(digest: u64) -> Told {
        Told { digest, changes: None }
    }

    fn one() -> (Schedule, HostId) {
        let (mut schedule, id) = (Schedule::default(), HostId::new());
        schedule.put(reach(id), RHYTHM, Instant::now());
        schedule.agrees(id, told(7));
        schedule.hosts.get_mut(&id).unwrap().answers = 0;
        (schedule, id)
    }

    #[test]
    fn only_what_differs_is_looked_at_and_silence_of_libvirt_is_not_a_difference() {
        let (mut schedule, id) = one();
        assert_eq!(schedule.heard(id, Ok(pong(id, Some(7))), false, RHYTHM, Instant::now()), Found::Nothing);
        assert_eq!(schedule.heard(id, Ok(pong(id, Some(8))), false, RHYTHM, Instant::now()), Found::Changed(told(8)));
        let restarted = |digest| Pong { boot_id: Uuid::from_u128(9), ..pong(id, digest) };
        assert_eq!(schedule.heard(id, Ok(restarted(None)), false, RHYTHM, Instant::now()), Found::Nothing);
        assert_eq!(schedule.heard(id, Ok(restarted(Some(7))), false, RHYTHM, Instant::now()), Found::Compare(told(7)));
        schedule.put(Reach { connection: HostConnection::Disconnected, ..reach(id) }, RHYTHM, Instant::now());
        assert_eq!(schedule.heard(id, Ok(pong(id, Some(7))), false, RHYTHM, Instant::now()), Found::Compare(told(7)));
    }

    #[test]
    fn what_was_and_is_again_is_looked_at_and_what_stays_the_same_is_doubted_at_times() {
        let (mut schedule, id) = one();
        let pong = |changes| Ok(Pong { changes: Some(changes), ..pong(id, Some(7)) });
        let agreed = Told { digest: 7, changes: Some(3) };
        schedule.agrees(id, agreed);
        for _ in 1..DOUBTED {
            assert_eq!(schedule.heard(id, pong(3), false, RHYTHM, Instant::now()), Found::Nothing);
        }
        assert_eq!(schedule.heard(id, pong(3), false, RHYTHM, Instant::now()), Found::Changed(agreed));
        assert_eq!(schedule.heard(id, pong(3), false, RHYTHM, Instant::now()), Found::Nothing);
        let changed = Told { digest: 7, changes: Some(5) };
        assert_eq!(schedule.heard(id, pong(5), false, RHYTHM, Instant::now()), Found::Changed(changed));
    }

    #[test]
    fn a_host_is_missed_after_so_many_pings_in_a_row_and_until_its_vms_were_told() {
        let (mut schedule, id) = one();
        let silent = || Err(Error::new(Code::HostUnreachable, "silent"));
        assert_eq!(schedule.heard(id, silent(), false, RHYTHM, Instant::now()), Found::Nothing);
        assert_eq!(schedule.heard(id, Ok(pong(id, Some(7))), false, RHYTHM, Instant::now()), Found::Nothing);
        assert_eq!(schedule.heard(id, silent(), false, RHYTHM, Instant::now()), Found::Nothing);
        assert!(matches!(schedule.heard(id, silent(), false, RHYTHM, Instant::now()), Found::Missed(_)));
        schedule.put(Reach { connection: HostConnection::Disconnected, ..reach(id) }, RHYTHM, Instant::now());
        assert!(matches!(schedule.heard(id, silent(), false, RHYTHM, Instant::now()), Found::Missed(_)));
        schedule.mourned(id);
        assert_eq!(schedule.heard(id, silent(), false, RHYTHM, Instant::now()), Found::Nothing);
        // Another controller may have written that down, and died before it told anybody.
        schedule.remove(id);
        schedule.put(Reach { connection: HostConnection::Disconnected, ..reach(id) }, RHYTHM, Instant::now());
        assert_eq!(schedule.heard(id, silent(), false, RHYTHM, Instant::now()), Found::Nothing);
        assert!(matches!(schedule.heard(id, silent(), false, RHYTHM, Instant::now()), Found::Missed(_)));
        let other = Ok(pong(HostId::new(), Some(7)));
        assert!(matches!(schedule.heard(id, other, false, RHYTHM, Instant::now()), Found::Missed(_)));
    }

    #[test]
    fn what_goes_wrong_here_is_not_counted_as_missed_and_being_late_only_as_often_as_pings_may_be_missed() {
        let (mut schedule, id) = one();
        let failed = |code| Err(Error::new(code, "it failed"));
        let begin = schedule.next().unwrap();
        let mut silent = |late| schedule.heard(id, failed(Code::HostUnreachable), late, RHYTHM, begin);
        assert_eq!([silent(true), silent(true)], [Found::Nothing, Found::Nothing]);
        assert_eq!(silent(true), Found::Nothing, "it has been so too often: the first that is counted");
        assert!(matches!(silent(false), Found::Missed(_)), "the second");
        assert_eq!(schedule.heard(id, Ok(pong(id, Some(7))), false, RHYTHM, begin), Found::Nothing);
        let mut silent = |late| schedule.heard(id, failed(Code::HostUnreachable), late, RHYTHM, begin);
        assert_eq!([silent(true), silent(false)], [Found::Nothing, Found::Nothing], "it has answered since");
        for _ in 0..10 {
            let ours = schedule.heard(id, failed(Code::Unavailable), false, RHYTHM, begin);
            assert_eq!(ours, Found::Nothing, "however often");
        }
    }

    #[test]
    fn after_a_ping_that_failed_here_the_next_one_follows_sooner() {
        let (mut schedule, id) = one();
        let begin = schedule.next().unwrap();
        assert_eq!(schedule.take_due(RHYTHM, begin, usize::MAX).len(), 1);
        let ours = Err(Error::new(Code::Unavailable, "no files"));
        assert_eq!(schedule.heard(id, ours, false, RHYTHM, begin), Found::Nothing);
        assert!(schedule.done(id));
        assert_eq!(schedule.next(), Some(begin + MINUTE / 2));
    }

    #[test]
    fn one_that_was_missed_is_asked_again_sooner_but_not_when_it_is_known_to_be_away() {
        let (mut schedule, id) = one();
        let silent = || Err(Error::new(Code::HostUnreachable, "silent"));
        let begin = schedule.next().unwrap();
        assert_eq!(schedule.take_due(RHYTHM, begin, usize::MAX).len(), 1);
        assert_eq!(schedule.heard(id, silent(), false, RHYTHM, begin), Found::Nothing);
        assert!(schedule.done(id));
        assert_eq!(schedule.next(), Some(begin + MINUTE / 2));
        assert_eq!(schedule.take_due(RHYTHM, begin + MINUTE / 2, usize::MAX).len(), 1);
        schedule.put(Reach { connection: HostConnection::Disconnected, ..reach(id) }, RHYTHM, begin);
        schedule.mourned(id);
        assert_eq!(schedule.heard(id, silent(), false, RHYTHM, begin + MINUTE / 2), Found::Nothing);
        assert!(schedule.done(id));
        assert_eq!(schedule.next(), Some(begin + MINUTE + MINUTE / 2));
    }

    #[test]
    fn a_host_is_compared_once_in_a_while_although_nothing_differs() {
        let (mut schedule, id) = one();
        let later = Instant::now() + RHYTHM.compare;
        assert_eq!(schedule.heard(id, Ok(pong(id, Some(7))), false, RHYTHM, later), Found::Compare(told(7)));
        schedule.compare_at(id, later + RHYTHM.compare);
        assert_eq!(schedule.heard(id, Ok(pong(id, Some(7))), false, RHYTHM, later), Found::Nothing);
    }

    #[test]
    fn each_host_has_a_moment_of_its_own_and_keeps_it() {
        let (mut schedule, begin) = (Schedule::default(), Instant::now());
        (0..1000).for_each(|_| schedule.put(reach(HostId::new()), RHYTHM, begin));
        assert_eq!(schedule.take_due(RHYTHM, begin + MINUTE / 2, 10).len(), 10);
        let early = 10 + schedule.take_due(RHYTHM, begin + MINUTE / 2, usize::MAX).len();
        assert!((400..600).contains(&early), "{early}");
        assert!(schedule.take_due(RHYTHM, begin + MINUTE / 2, usize::MAX).is_empty());
        // Those that are still busy are not taken again; the others are.
        assert_eq!(early + schedule.take_due(RHYTHM, begin + MINUTE, usize::MAX).len(), 1000);
        assert!(schedule.take_due(RHYTHM, begin + 2 * MINUTE, usize::MAX).is_empty() && schedule.next().is_none());
        let ids: Vec<_> = schedule.hosts.keys().copied().collect();
        assert_ne!(ids.iter().filter(|id| schedule.done(**id)).count(), 0);
        assert_eq!(schedule.take_due(RHYTHM, begin + MINUTE + MINUTE / 2, usize::MAX).len(), early);
        // A moment that is over long since is not made up for.
        let late = begin + 10 * MINUTE;
        assert_ne!(ids.iter().filter(|id| schedule.done(**id)).count(), 0);
        assert_eq!(schedule.take_due(RHYTHM, late, usize::MAX).len(), 1000);
        assert_ne!(ids.iter().filter(|id| schedule.done(**id)).count(), 0);
        assert!(schedule.next().is_some_and(|next| next > late));
    }

    #[test]
    fn a_host_that_joins_is_awaited_and_one_that_is_gone_is_forgotten() {
        let (mut schedule, id) = one();
        let now = Instant::now();
        schedule.put(Reach { connection: HostConnection::Connecting, address: "b:2".into(), ..reach(id) }, RHYTHM, now);
        let due = schedule.take_due(RHYTHM, now + AWAITED, usize::MAX);
        assert_eq!(due, [HostRef { id, address: "b:2".to_string() }]);
        schedule.remove(id);
        assert!(
            !schedule.done(id)
                && schedule.next().is_none()
                && schedule.heard(id, Ok(pong(id, None)), false, RHYTHM, now) == Found::Nothing
        );
        schedule.put(reach(id), RHYTHM, now);
        schedule.retain(|other| other != id);
        assert!(schedule.next().is_none());
    }
}
