//! Who owns what: the ring of this moment, with its generation.
//!
//! Everybody asks here and nobody remembers the answer across an await that matters: a new
//! generation may have come. The ring changes only through [`Ring::follow`], when the heartbeat has
//! seen other members.
//!
//! A resource that moves is free for its new owner when its old one has let go of it, or is no member
//! any more: [`Ring::until_mine`] waits for that. The rules are those of [`view`]; here is who waits.

pub mod hash;
pub mod heartbeat;
pub mod view;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shared::id::ControllerId;
use shared::{Code, Error};
use tokio::sync::watch;
use uuid::Uuid;

use crate::db::controller::Membership;
pub use hash::HashRing;
pub use view::{Begin, Change, Lease, View};

/// Time since the last confirmed heartbeat in which this controller acts. Others take over after
/// [`crate::db::controller::LOST_AFTER_MS`] at the earliest.
pub const LEASE: Duration = Duration::from_secs(2);

/// The ring as this controller sees it. Cloning shares it.
#[derive(Clone)]
pub struct Ring {
    me: ControllerId,
    inner: Arc<Inner>,
}

struct Inner {
    view: ArcSwap<View>,
    /// Counts what was followed, for those who wait.
    changes: watch::Sender<u64>,
    born: Instant,
    /// The [`Lease`], on a clock that began with `born`.
    lease: AtomicU64,
    nudge: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("me", &self.me).field("view", &self.inner.view.load()).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring without members, as before joining.
    #[must_use]
    pub fn new(me: ControllerId) -> Self {
        let inner = Inner {
            view: ArcSwap::default(),
            changes: watch::Sender::new(0),
            born: Instant::now(),
            lease: AtomicU64::new(Lease::ENDLESS.number()),
            nudge: OnceLock::new(),
        };
        Self { me, inner: Arc::new(inner) }
    }

    /// Takes over the members of a newer generation, all of whom have let go; an older one is ignored.
    pub fn install(&self, generation: u64, members: &[ControllerId]) {
        self.replace(View::settled(generation, lay_out(members)));
    }

    /// Takes over what the heartbeat has seen, and answers what has changed. `before` is the ring before
    /// this generation, when this controller has not seen it itself.
    pub fn follow(&self, seen: &Membership, before: Option<(u64, &[ControllerId])>) -> Change {
        let now = self.inner.view.load();
        let next = now.follow(self.me, seen, before, lay_out);
        let change = now.change_to(&next);
        self.replace(next);
        change
    }

    fn replace(&self, next: View) {
        let next = Arc::new(next);
        self.inner.view.rcu(|now| if now.generation() <= next.generation() { next.clone() } else { now.clone() });
        self.inner.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// This controller.
    #[must_use]
    pub const fn me(&self) -> ControllerId {
        self.me
    }

    /// The generation of the ring; 0 before joining.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.view.load().generation()
    }

    /// Whether there was a ring between the one that was followed last and that of a generation.
    #[must_use]
    pub fn has_missed(&self, generation: u64) -> bool {
        self.inner.view.load().has_missed(generation)
    }

    /// Whether a controller lives, as far as is known here; this one does.
    #[must_use]
    pub fn is_alive(&self, id: ControllerId) -> bool {
        id == self.me || self.inner.view.load().alive().any(|alive| alive == id)
    }

    /// The controllers that own something.
    #[must_use]
    pub fn members(&self) -> Vec<ControllerId> {
        self.inner.view.load().ring().members().to_vec()
    }

    /// Whether there are other controllers.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.inner.view.load().alive().len() > 1
    }

    /// The controller that owns `id`.
    pub fn owner(&self, id: Uuid) -> Result<ControllerId, Error> {
        let owner = self.inner.view.load().ring().owner(id);
        owner.ok_or_else(|| Error::new(Code::OwnerLeft, "the ring has no members now: try again in a moment"))
    }

    /// Whether this controller owns `id`.
    #[must_use]
    pub fn is_mine(&self, id: Uuid) -> bool {
        self.inner.view.load().ring().owner(id) == Some(self.me)
    }

    /// The generation of the ring, when this controller owns `id` in it.
    #[must_use]
    pub fn generation_as_owner(&self, id: Uuid) -> Option<u64> {
        let view = self.inner.view.load();
        (view.ring().owner(id) == Some(self.me)).then_some(view.generation())
    }

    /// The share of all ids that a controller owns, 0 to 1.
    #[must_use]
    pub fn share(&self, id: ControllerId) -> f64 {
        self.inner.view.load().ring().share(id)
    }

    /// Whether work on `id` may begin here; `owner_left` when it belongs elsewhere. Waits, until
    /// `deadline`, for its old owner to let go of it and for a good lease.
    pub async fn until_mine(&self, id: Uuid, deadline: tokio::time::Instant) -> Result<(), Error> {
        if self.begin(id)? {
            return Ok(());
        }
        let mut changes = self.inner.changes.subscribe();
        let waits = async {
            loop {
                changes.mark_unchanged();
                if self.begin(id)? {
                    return Ok(());
                }
                // The sender lives as long as this ring.
                let _ = changes.changed().await;
            }
        };
        match tokio::time::timeout_at(deadline, waits).await {
            Ok(result) => result,
            Err(_) if !self.may_act() => Err(out_of_touch()),
            Err(_) => {
                let text = "the controller that owned this has not let go of it yet: try again in a moment";
                Err(Error::new(Code::OwnerLeft, text))
            }
        }
    }

    /// Whether work on `id` may begin now; `owner_left` when it never may, here.
    fn begin(&self, id: Uuid) -> Result<bool, Error> {
        match self.inner.view.load().begin(self.me, id) {
            Begin::Now => Ok(self.may_act()),
            Begin::Held => Ok(false),
            Begin::Elsewhere => {
                let text = "this controller does not own the resource any more: ask the ring again";
                Err(Error::new(Code::OwnerLeft, text))
            }
        }
    }

    /// Resolves when `id` does not belong here any more.
    pub async fn lost(&self, id: Uuid) {
        let mut changes = self.inner.changes.subscribe();
        while self.is_mine(id) {
            // The sender lives as long as this ring.
            let _ = changes.changed().await;
        }
    }

    /// Resolves with every change that is followed.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Whether the last heartbeat is young enough to act.
    #[must_use]
    pub fn may_act(&self) -> bool {
        Lease::from_number(self.inner.lease.load(Relaxed)).holds(self.inner.born.elapsed())
    }

    /// Waits, until `deadline`, for a heartbeat that is young enough to act.
    pub async fn until_may_act(&self, deadline: tokio::time::Instant) -> Result<(), Error> {
        if self.may_act() {
            return Ok(());
        }
        let mut changes = self.inner.changes.subscribe();
        let waits = async {
            while !self.may_act() {
                changes.mark_unchanged();
                let _ = tokio::time::timeout(LEASE, changes.changed()).await;
            }
        };
        tokio::time::timeout_at(deadline, waits).await.map_err(|_| out_of_touch())
    }

    /// The database has confirmed a touch that was sent at `began`.
    pub fn renew_lease(&self, began: Instant) {
        let had = self.may_act();
        let lease = Lease::of(began.saturating_duration_since(self.inner.born), LEASE);
        self.inner.lease.store(lease.number(), Relaxed);
        if !had {
            self.inner.changes.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Lets [`Ring::nudge`] do something.
    pub fn on_nudge(&self, nudge: impl Fn() + Send + Sync + 'static) {
        // A second one would be a defect of the start-up; the first one stays.
        let _ = self.inner.nudge.set(Box::new(nudge));
    }

    /// The ring that was followed last may be old: have a look at once.
    pub fn nudge(&self) {
        if let Some(nudge) = self.inner.nudge.get() {
            nudge();
        }
    }
}

fn lay_out(members: &[ControllerId]) -> Arc<HashRing> {
    Arc::new(HashRing::new(members))
}

fn out_of_touch() -> Error {
    let text = "this controller has lost touch with the database: it begins nothing until it is back";
    Error::new(Code::Unavailable, text)
}

#[cfg(test)]
mod tests;
