//! The ring as one controller sees it: generations, hand-over, the lease.

use super::*;
use crate::db::controller::ControllerRow;
use shared::state::controller::ControllerState;
use shared::time::Timestamp;

fn row(id: ControllerId, state: ControllerState, settled: u64) -> ControllerRow {
    ControllerRow {
        id,
        addresses: Vec::new(),
        version: String::new(),
        state,
        joined: 1,
        settled,
        started_at: Timestamp(0),
        heartbeat_at: 0,
        silent_ms: 0,
        connected: true,
    }
}

fn seen(generation: u64, controllers: Vec<ControllerRow>) -> Membership {
    Membership { generation, controllers }
}

/// An id that `owner` has in the ring of `members`.
fn owned_by(owner: ControllerId, members: &[ControllerId]) -> Uuid {
    let ring = HashRing::new(members);
    (0..).map(Uuid::from_u128).find(|id| ring.owner(*id) == Some(owner)).unwrap()
}

fn soon(seconds: u64) -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(seconds)
}

#[test]
fn an_older_generation_is_ignored() {
    let (me, other) = (ControllerId::new(), ControllerId::new());
    let ring = Ring::new(me);
    assert_eq!(ring.owner(Uuid::nil()).unwrap_err().code, Code::OwnerLeft);
    ring.install(2, &[me]);
    ring.install(1, &[other]);
    assert_eq!((ring.generation(), ring.owner(Uuid::nil()).unwrap()), (2, me));
    assert!(ring.is_mine(Uuid::nil()));
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_moves_is_free_when_its_old_owner_has_let_go() {
    use ControllerState::{Active, Draining};
    let (me, other) = (ControllerId::new(), ControllerId::new());
    let (mine, moves) = (owned_by(me, &[me, other]), owned_by(other, &[me, other]));
    let ring = Ring::new(me);
    ring.follow(&seen(5, vec![row(me, Active, 5), row(other, Active, 5)]), None);
    assert_eq!(ring.until_mine(moves, soon(1)).await.unwrap_err().code, Code::OwnerLeft);
    // The other one drains: what it had is owned here, and not free yet; what was here always was.
    ring.follow(&seen(6, vec![row(me, Active, 6), row(other, Draining, 5)]), None);
    assert!(ring.is_mine(moves) && ring.is_shared() && !ring.members().contains(&other));
    ring.until_mine(mine, soon(0)).await.unwrap();
    let early = ring.until_mine(moves, soon(1)).await.unwrap_err();
    assert!(early.code == Code::OwnerLeft && early.message.contains("let go"), "{early}");
    let waits = ring.clone();
    let waiting = std::pin::pin!(waits.until_mine(moves, soon(60)));
    let (freed, ()) = tokio::join!(waiting, async {
        ring.follow(&seen(6, vec![row(me, Active, 6), row(other, Draining, 6)]), None);
    });
    freed.unwrap();
    // Or when it is gone.
    ring.follow(&seen(7, vec![row(me, Active, 7), row(other, Active, 7)]), None);
    ring.follow(&seen(8, vec![row(me, Active, 8)]), None);
    ring.until_mine(moves, soon(0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_joins_waits_for_those_of_whom_it_knows_too_little() {
    use ControllerState::Active;
    let (me, other) = (ControllerId::new(), ControllerId::new());
    let mine = owned_by(me, &[me, other]);
    let now = seen(9, vec![row(me, Active, 9), row(other, Active, 7)]);
    let ring = Ring::new(me);
    ring.follow(&now, None);
    assert!(ring.until_mine(mine, soon(0)).await.is_err());
    let ring = Ring::new(me);
    ring.follow(&now, Some((8, &[other])));
    assert!(ring.until_mine(mine, soon(0)).await.is_err(), "it has let go of nothing since 7");
    let ring = Ring::new(me);
    ring.follow(&now, Some((7, &[other])));
    assert!(ring.until_mine(mine, soon(0)).await.is_err(), "it owned this in 7");
    let ring = Ring::new(me);
    ring.follow(&seen(9, vec![row(me, Active, 9), row(other, Active, 9)]), Some((8, &[other])));
    ring.until_mine(mine, soon(0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_got_something_in_a_ring_that_was_missed_here_is_waited_for() {
    use ControllerState::{Active, Draining};
    let (me, first, second) = (ControllerId::new(), ControllerId::new(), ControllerId::new());
    // It belongs to the first; to the second when the first drains; here when both do.
    let all = HashRing::new(&[me, first, second]);
    let without = HashRing::new(&[me, second]);
    let moves = |id: &Uuid| all.owner(*id) == Some(first) && without.owner(*id) == Some(second);
    let moves = (0..).map(Uuid::from_u128).find(moves).unwrap();
    let rows = |of_first, of_second, settled| {
        let (me, first) = (row(me, Active, settled), row(first, of_first, settled));
        vec![me, first, row(second, of_second, settled - 1)]
    };
    let ring = Ring::new(me);
    ring.follow(&seen(5, rows(Active, Active, 5)), None);
    // The ring of generation 6, in which the first has let go and the second has it, is not seen.
    assert!(!ring.has_missed(6) && ring.has_missed(7));
    ring.follow(&seen(7, rows(Draining, Draining, 7)), Some((6, &[me, second])));
    assert!(ring.is_mine(moves));
    assert!(ring.until_mine(moves, soon(1)).await.is_err(), "the second may still be busy with it");
    let mut settled = rows(Draining, Draining, 7);
    settled[2].settled = 7;
    ring.follow(&seen(7, settled), None);
    ring.until_mine(moves, soon(0)).await.unwrap();
}

#[test]
fn who_has_ended_and_joined_again_between_two_looks_is_seen_to_have_ended() {
    let (me, other) = (ControllerId::new(), ControllerId::new());
    let row = |id, joined| ControllerRow { joined, ..row(id, ControllerState::Active, joined) };
    let ring = Ring::new(me);
    let change =
        |other_joined, generation| ring.follow(&seen(generation, vec![row(me, 1), row(other, other_joined)]), None);
    assert_eq!(change(2, 3), Change { generation: Some(3), ..Change::default() });
    assert_eq!(change(2, 4), Change { generation: Some(4), ..Change::default() });
    assert_eq!(change(6, 7), Change { generation: Some(7), restarted: vec![other], ..Change::default() });
    assert_eq!(ring.follow(&seen(8, vec![row(me, 1)]), None).gone, [other]);
}

#[tokio::test]
async fn without_a_heartbeat_nothing_begins() {
    let me = ControllerId::new();
    let ring = Ring::new(me);
    ring.install(1, &[me]);
    ring.until_mine(Uuid::nil(), soon(0)).await.unwrap();
    // A touch that was sent longer ago than the lease lasts, such as of a process that was frozen.
    let Some(long_ago) = Instant::now().checked_sub(LEASE * 2) else { return };
    let frozen = Ring { me, inner: Arc::new(Inner { born: long_ago, ..fresh() }) };
    frozen.install(1, &[me]);
    frozen.renew_lease(long_ago);
    assert!(!frozen.may_act());
    assert_eq!(frozen.until_mine(Uuid::nil(), soon(0)).await.unwrap_err().code, Code::Unavailable);
    assert_eq!(frozen.until_may_act(tokio::time::Instant::now()).await.unwrap_err().code, Code::Unavailable);
    frozen.renew_lease(Instant::now());
    frozen.until_mine(Uuid::nil(), soon(0)).await.unwrap();
}

fn fresh() -> Inner {
    Inner {
        view: ArcSwap::default(),
        changes: watch::Sender::new(0),
        born: Instant::now(),
        lease: AtomicU64::new(Lease::ENDLESS.number()),
        nudge: OnceLock::new(),
    }
}
