//! Zones: failure domains.

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::id::ZoneId;
use crate::name::Name;
use crate::time::Timestamp;

/// A zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Zone {
    /// Its id.
    pub id: ZoneId,
    /// Its name, unique.
    pub name: Name,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// `POST /v1/zones`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateZone {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ZoneId>,
    /// Unique name.
    pub name: Name,
    /// Free text, at most 1,000 characters.
    #[serde(default)]
    pub description: String,
}
