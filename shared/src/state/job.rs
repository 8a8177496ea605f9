//! States of a job.
//!
//! ```text
//! queued ──▶ running ──▶ succeeded
//!    │          └──▶ rolling_back ──▶ failed | cancelled
//!    └──▶ cancelled
//! ```

use super::state_enum;

state_enum! {
    /// How far a job is.
    JobState {
        /// Durable, waiting for its turn.
        Queued = "queued",
        /// Applying its steps.
        Running = "running",
        /// Undoing its steps after a failure or a cancellation.
        RollingBack = "rolling_back",
        /// All steps are done.
        Succeeded = "succeeded",
        /// A step failed and the steps before it are undone, or owed as clean-up.
        Failed = "failed",
        /// A user cancelled it, and what it had done is undone.
        Cancelled = "cancelled",
    }
}

impl JobState {
    /// Whether a job may go from this state to `next`. Staying is always allowed.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use JobState::*;
        match self {
            Queued => matches!(next, Queued | Running | Cancelled | Failed),
            Running => matches!(next, Running | Succeeded | RollingBack),
            RollingBack => matches!(next, RollingBack | Failed | Cancelled),
            Succeeded => next == Succeeded,
            Failed => next == Failed,
            Cancelled => next == Cancelled,
        }
    }

    /// Whether the job will never change again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::RollingBack => false,
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
        }
    }
}
