//! The order of calls about one VM: one at a time is inside libvirt, in the order in which they came.
//!
//! A call whose caller has given up keeps its place until it has ended and its effect is taken back
//! (see [`super::pool`]). So a later command is never answered as done while an earlier call about the
//! same VM could still act: it waits, as long as it may, and is then refused with an error that says
//! so and that is worth another try. Calls about different VMs do not know of each other.
//!
//! ```text
//! third ─▶ second ─▶ first, inside libvirt          next turn: when the first has left its place
//!                    ahead of it: one "destroy"     and the one ahead has, too
//! ```
//!
//! Only the ending of a VM may go ahead of what is under way, because that may hang in the very QEMU
//! that is to be ended; it is repeated in its turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use shared::id::VmId;
use tokio::sync::{OwnedMutexGuard, watch};

use super::Error;

#[derive(Debug)]
struct Lane {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether a call has gone ahead.
    ahead: watch::Sender<bool>,
}

/// A place in a VM's lane, given up when it is dropped.
#[derive(Debug)]
pub struct Place {
    lane: Arc<Lane>,
    /// `None` for the one that has gone ahead.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.turn.is_none() {
            self.lane.ahead.send_replace(false);
        }
    }
}

/// The lanes of all VMs; one exists as long as somebody is in it.
#[derive(Debug, Default)]
pub struct Lanes(Mutex<HashMap<VmId, Weak<Lane>>>);

impl Lanes {
    /// Waits for a VM's turn, for at most `limit`; first come, first served.
    ///
    /// # Errors
    /// [`Error::Occupied`].
    pub async fn enter(&self, vm_id: VmId, limit: Duration) -> Result<Place, Error> {
        let lane = self.lane(vm_id);
        let wait = async {
            let turn = Arc::clone(&lane.turn).lock_owned().await;
            // It cannot fail: the sender is in the lane that is held here.
            let _ = lane.ahead.subscribe().wait_for(|ahead| !ahead).await;
            turn
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(turn) => Ok(Place { lane, turn: Some(turn) }),
            Err(_) => Err(Error::Occupied { vm_id, after: limit }),
        }
    }

    /// A place ahead of the call that is under way; `None` when there is no such call, or when another
    /// has gone ahead of it.
    #[must_use]
    pub fn go_ahead(&self, vm_id: VmId) -> Option<Place> {
        let lane = self.lane(vm_id);
        let under_way = lane.turn.try_lock().is_err();
        let first = under_way && lane.ahead.send_if_modified(|ahead| !std::mem::replace(ahead, true));
        first.then(|| Place { lane, turn: None })
    }

    fn lane(&self, vm_id: VmId) -> Arc<Lane> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&vm_id).and_then(Weak::upgrade) {
            return lane;
        }
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(Lane { turn: Arc::default(), ahead: watch::Sender::new(false) });
        lanes.insert(vm_id, Arc::downgrade(&lane));
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_turn_comes_when_those_before_have_left_and_others_do_not_wait() {
        let (lanes, vm_id) = (Lanes::default(), VmId::new());
        let first = lanes.enter(vm_id, LONG).await.unwrap();
        assert!(lanes.enter(VmId::new(), LONG).await.is_ok());
        let late = lanes.enter(vm_id, Duration::from_millis(1)).await;
        assert!(matches!(late, Err(Error::Occupied { vm_id: id, .. }) if id == vm_id));
        let (second, ()) = tokio::join!(lanes.enter(vm_id, LONG), async { drop(first) });
        drop(second.unwrap());
        assert!(lanes.go_ahead(vm_id).is_none(), "there is nobody to go ahead of");
    }

    #[tokio::test]
    async fn one_may_go_ahead_and_the_next_turn_waits_for_it() {
        let (lanes, vm_id) = (Lanes::default(), VmId::new());
        let first = lanes.enter(vm_id, LONG).await.unwrap();
        let ahead = lanes.go_ahead(vm_id).unwrap();
        assert!(lanes.go_ahead(vm_id).is_none());
        drop(first);
        assert!(lanes.enter(vm_id, Duration::from_millis(1)).await.is_err());
        let (next, ()) = tokio::join!(lanes.enter(vm_id, LONG), async { drop(ahead) });
        next.unwrap();
    }
}
