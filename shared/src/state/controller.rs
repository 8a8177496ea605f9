//! States of a controller in its cluster.
//!
//! ```text
//! joining ──▶ active ◀──▶ draining
//! ```
//!
//! A controller that has left, or was found dead, has no state: its row is gone.

use super::state_enum;

state_enum! {
    /// What a controller does in its cluster.
    ControllerState {
        /// Starts; owns nothing yet.
        Joining = "joining",
        /// Owns its share of the ring.
        Active = "active",
        /// Answers, but owns nothing any more: its share has gone to the others.
        Draining = "draining",
    }
}

impl ControllerState {
    /// Whether a controller may go from this state to `next`. Staying is always allowed.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use ControllerState::*;
        match self {
            Joining => matches!(next, Joining | Active),
            Active => matches!(next, Active | Draining),
            Draining => matches!(next, Draining | Active),
        }
    }
}
