//! Who owns what: the ring of this moment, with its generation.
//!
//! Everybody asks here and nobody remembers the answer across an await that matters: a new
//! generation may have come. The ring changes only through [`Ring::install`], which membership calls.

pub mod hash;

use std::sync::Arc;

use arc_swap::ArcSwap;
use shared::id::ControllerId;
use shared::{Code, Error};
use uuid::Uuid;

pub use hash::HashRing;

#[derive(Debug)]
struct View {
    generation: u64,
    ring: HashRing,
}

/// The ring as this controller sees it. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ring {
    me: ControllerId,
    view: Arc<ArcSwap<View>>,
}

impl Ring {
    /// A ring without members, as before joining.
    #[must_use]
    pub fn new(me: ControllerId) -> Self {
        Self { me, view: Arc::new(ArcSwap::from_pointee(View { generation: 0, ring: HashRing::default() })) }
    }

    /// Takes over the members of a newer generation; an older one is ignored.
    pub fn install(&self, generation: u64, members: &[ControllerId]) {
        let next = Arc::new(View { generation, ring: HashRing::new(members) });
        self.view.rcu(|now| if now.generation < generation { next.clone() } else { now.clone() });
    }

    /// This controller.
    #[must_use]
    pub const fn me(&self) -> ControllerId {
        self.me
    }

    /// The generation of the ring; 0 before joining.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.view.load().generation
    }

    /// All members.
    #[must_use]
    pub fn members(&self) -> Vec<ControllerId> {
        self.view.load().ring.members().to_vec()
    }

    /// The controller that owns `id`.
    pub fn owner(&self, id: Uuid) -> Result<ControllerId, Error> {
        let owner = self.view.load().ring.owner(id);
        owner.ok_or_else(|| Error::new(Code::Unavailable, "the ring has no members yet: try again in a moment"))
    }

    /// Whether this controller owns `id`.
    #[must_use]
    pub fn is_mine(&self, id: Uuid) -> bool {
        self.view.load().ring.owner(id) == Some(self.me)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_generation_is_ignored() {
        let (me, other) = (ControllerId::new(), ControllerId::new());
        let ring = Ring::new(me);
        assert_eq!(ring.owner(Uuid::nil()).unwrap_err().code, Code::Unavailable);
        ring.install(2, &[me]);
        ring.install(1, &[other]);
        assert_eq!((ring.generation(), ring.owner(Uuid::nil()).unwrap()), (2, me));
        assert!(ring.is_mine(Uuid::nil()));
    }
}
