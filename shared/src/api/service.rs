//! Services of the controller, as `GET /v1/services` lists them.

use serde::{Deserialize, Serialize};

/// A service of this controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Service {
    /// Its name, such as `vm`.
    pub name: String,
    /// Whether it is started here.
    pub started: bool,
    /// Whether the operator has switched it off (`services.disabled`).
    #[serde(default)]
    pub disabled: bool,
    /// Messages that it is handling now.
    pub in_flight: u64,
    /// Messages that wait in its queues.
    pub queued: u64,
    /// Messages that it has handled.
    pub handled: u64,
    /// Messages that it answered with an error.
    pub failed: u64,
    /// Names of the messages that it understands.
    pub messages: Vec<String>,
}
