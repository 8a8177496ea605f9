//! States of a host: what the operator wants of it, and whether it answers.
//!
//! ```text
//! admin:       enabled ◀──▶ disabled ◀──▶ maintenance   (any to any)
//! connection:  connecting ──▶ connected ◀──▶ disconnected ──▶ connecting
//! ```

use super::state_enum;

state_enum! {
    /// What the operator wants of a host.
    HostAdminState {
        /// Takes new VMs.
        Enabled = "enabled",
        /// Keeps its VMs, takes no new ones.
        Disabled = "disabled",
        /// Keeps no VMs, takes none; not started on.
        Maintenance = "maintenance",
    }
}

state_enum! {
    /// Whether a host answers.
    HostConnection {
        /// Being compared with the database; takes no new VMs yet.
        Connecting = "connecting",
        /// Answers its pings.
        Connected = "connected",
        /// Missed its pings; what its VMs do is unknown.
        Disconnected = "disconnected",
    }
}

impl HostConnection {
    /// Whether a host may go from this state to `next`. Staying is always allowed.
    #[must_use]
    pub fn can_become(self, next: Self) -> bool {
        use HostConnection::*;
        match self {
            Connecting => matches!(next, Connecting | Connected | Disconnected),
            Connected => matches!(next, Connected | Connecting | Disconnected),
            Disconnected => matches!(next, Disconnected | Connecting),
        }
    }
}
