//! Controllers: the processes that share the work, and which of them owns what.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Links;
use crate::id::ControllerId;
pub use crate::state::controller::ControllerState;
use crate::time::Timestamp;

/// A controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Controller {
    /// Its id, the same after a restart.
    pub id: ControllerId,
    /// URL by which agents and users reach it.
    pub address: String,
    /// Its version.
    pub version: String,
    /// What it does.
    pub state: ControllerState,
    /// Generation of the ring in which it joined.
    pub generation: u64,
    /// When it joined.
    pub started_at: Timestamp,
    /// Its last heartbeat, by the database's clock.
    pub heartbeat_at: Timestamp,
    /// Part of all resources that it owns, 0 to 1.
    #[serde(default)]
    pub share: f64,
    /// What it says of itself, as of some seconds ago.
    #[serde(flatten)]
    pub report: ControllerReport,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// What a controller says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ControllerReport {
    /// URLs by which agents reach it, the one for callbacks first.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The services that it runs.
    #[serde(default)]
    pub services: Vec<String>,
    /// Its way to the other controllers.
    #[serde(default)]
    pub bus: Health,
    /// Its way to the database.
    #[serde(default)]
    pub database: Health,
}

/// How something that a controller needs is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Health {
    /// What it is: `rabbitmq` or `none`, `postgresql` or `sqlite`.
    #[serde(default)]
    pub kind: String,
    /// Whether it works.
    #[serde(default)]
    pub healthy: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `GET /v1/ring/{id}`: which controller owns a resource, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Ownership {
    /// The resource.
    pub id: Uuid,
    /// Its owner.
    pub controller_id: ControllerId,
    /// URL of the owner.
    pub address: String,
    /// Since when it is the owner, as far as is known.
    pub since: Timestamp,
    /// Generation in which it became the owner.
    pub since_generation: u64,
    /// Generation of the ring now.
    pub generation: u64,
}
