//! Events: what happened, in order, resumable from any point.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::Timestamp;

/// An event, as in `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// Its place in the order of all events; give the last one seen as `after`.
    pub cursor: i64,
    /// What happened, such as `/vm/state/changed` or `/job/succeeded`.
    pub path: String,
    /// Noun of the resource.
    pub resource_kind: String,
    /// The resource.
    pub resource_id: Uuid,
    /// The content, by the path.
    pub content: serde_json::Value,
    /// When it happened.
    pub at: Timestamp,
}
