//! States of a volume.
//!
//! ```text
//! creating ──▶ available ──attach──▶ attaching ──▶ attached ──detach──▶ detaching ──▶ available
//!                  └──▶ deleting (row gone)
//! ```
//!
//! A root volume is `attached` for as long as its VM exists.

use super::state_enum;

state_enum! {
    /// What a volume is doing.
    VolumeState {
        /// Being made.
        Creating = "creating",
        /// Made, and attached to nothing.
        Available = "available",
        /// On its way to a VM.
        Attaching = "attaching",
        /// Belongs to a VM.
        Attached = "attached",
        /// On its way from a VM.
        Detaching = "detaching",
        /// Being removed.
        Deleting = "deleting",
    }
}

impl VolumeState {
    /// Whether a volume may go from this state to `next`. Staying is always allowed.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use VolumeState::*;
        match self {
            Creating => matches!(next, Creating | Available | Attached | Deleting),
            Available => matches!(next, Available | Attaching | Deleting),
            Attaching => matches!(next, Attaching | Attached | Available),
            Attached => matches!(next, Attached | Detaching | Deleting),
            Detaching => matches!(next, Detaching | Available | Attached),
            Deleting => matches!(next, Deleting | Available | Attached),
        }
    }
}
