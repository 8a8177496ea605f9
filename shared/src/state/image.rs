//! States of an image.
//!
//! ```text
//! creating ──▶ ready ──▶ deleting (row gone)
//! ```

use super::state_enum;

state_enum! {
    /// Whether an image can be used.
    ImageState {
        /// Waiting for its content, or being downloaded and checked.
        Creating = "creating",
        /// Checked; VMs can be made from it.
        Ready = "ready",
        /// Being removed.
        Deleting = "deleting",
    }
}

impl ImageState {
    /// Whether an image may go from this state to `next`. Staying is always allowed.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        match self {
            Self::Creating => matches!(next, Self::Creating | Self::Ready | Self::Deleting),
            Self::Ready => matches!(next, Self::Ready | Self::Deleting),
            Self::Deleting => matches!(next, Self::Deleting | Self::Ready | Self::Creating),
        }
    }
}
