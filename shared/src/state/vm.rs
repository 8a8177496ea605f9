//! States of a VM.
//!
//! ```text
//!            create                 stop
//! creating ────────▶ running ◀───────────────┐ stopping ──▶ stopped
//!    │ (no start)     │ ▲ │ ▲                 └──────▲        │ ▲
//!    └──▶ stopped     │ │ │ └── resuming ◀── paused  │  start │ │ recover
//!                     │ │ └──── pausing ───▶ paused ─┘◀───────┘ │
//!                     │ └── rebooting / starting / migrating    │
//!                     ▼                                         │
//!            crashed, unknown              deleting ──▶ deleted ┘──▶ expunging (row gone)
//! ```
//!
//! A state that ends in `-ing` belongs to a job; the job moves it on or back. `unknown` means that
//! the host does not answer: what the VM does there is not known, and nobody may assume "off".
//! `crashed` means that the guest or its QEMU ended by itself.

use super::state_enum;

state_enum! {
    /// What a VM is doing, as far as Kring knows.
    VmState {
        /// Accepted; its job is making it.
        Creating = "creating",
        /// Not running; its disks are kept.
        Stopped = "stopped",
        /// On its way to running.
        Starting = "starting",
        /// Running on its host.
        Running = "running",
        /// On its way to stopped.
        Stopping = "stopping",
        /// Restarting.
        Rebooting = "rebooting",
        /// On its way to paused.
        Pausing = "pausing",
        /// Its processors are halted, its memory is kept.
        Paused = "paused",
        /// On its way from paused to running.
        Resuming = "resuming",
        /// Moving to another host while it runs, or is paused.
        Migrating = "migrating",
        /// On its way to deleted.
        Deleting = "deleting",
        /// Deleted but recoverable: domain gone, disks kept until it is expunged.
        Deleted = "deleted",
        /// Its disks are being removed; then the row goes.
        Expunging = "expunging",
        /// Ended by itself: the guest or QEMU died.
        Crashed = "crashed",
        /// Its host does not answer.
        Unknown = "unknown",
    }
}

impl VmState {
    /// Whether a VM may go from this state to `next`. Staying is always allowed.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use VmState::*;
        if self == next {
            return true;
        }
        let allowed: &[Self] = match self {
            Creating => &[Running, Stopped, Unknown, Deleting],
            Stopped => &[Starting, Running, Paused, Deleting, Unknown],
            Starting => &[Running, Stopped, Paused, Crashed, Unknown],
            Migrating => &[Running, Paused, Stopped, Crashed, Unknown],
            Running => &[Stopping, Stopped, Rebooting, Pausing, Migrating, Paused, Deleting, Crashed, Unknown],
            Stopping => &[Stopped, Running, Paused, Crashed, Unknown],
            Rebooting => &[Running, Stopped, Paused, Crashed, Unknown],
            Pausing => &[Paused, Running, Stopped, Crashed, Unknown],
            Paused => &[Resuming, Migrating, Running, Stopping, Stopped, Deleting, Crashed, Unknown],
            Resuming => &[Running, Paused, Stopped, Crashed, Unknown],
            Deleting => &[Deleted, Running, Stopped, Paused, Crashed, Unknown],
            Deleted => &[Stopped, Expunging],
            Expunging => &[Deleted],
            Crashed => &[Starting, Running, Stopped, Paused, Deleting, Unknown],
            Unknown => &[Running, Stopped, Paused, Crashed, Stopping, Deleting],
        };
        allowed.contains(&next)
    }

    /// Whether a job holds the VM; only that job moves it on.
    #[must_use]
    pub const fn is_transitional(self) -> bool {
        match self {
            Self::Creating
            | Self::Starting
            | Self::Stopping
            | Self::Rebooting
            | Self::Pausing
            | Self::Resuming
            | Self::Migrating
            | Self::Deleting
            | Self::Expunging => true,
            Self::Stopped | Self::Running | Self::Paused | Self::Deleted | Self::Crashed | Self::Unknown => false,
        }
    }

    /// Whether a host's processors and memory are reserved for a VM that rests in this state.
    #[must_use]
    pub const fn holds_compute(self) -> bool {
        match self {
            Self::Stopped | Self::Deleted | Self::Expunging => false,
            Self::Creating
            | Self::Starting
            | Self::Running
            | Self::Stopping
            | Self::Rebooting
            | Self::Pausing
            | Self::Paused
            | Self::Resuming
            | Self::Migrating
            | Self::Deleting
            | Self::Crashed
            | Self::Unknown => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transitional_state_has_a_way_out() {
        for state in VmState::ALL.iter().filter(|s| s.is_transitional()) {
            assert!(
                VmState::ALL.iter().any(|next| next != state && !next.is_transitional() && state.can_become(*next))
            );
        }
    }

    #[test]
    fn only_deleted_leads_to_expunging() {
        for state in VmState::ALL {
            assert_eq!(state.can_become(VmState::Expunging), matches!(state, VmState::Deleted | VmState::Expunging));
        }
    }
}
