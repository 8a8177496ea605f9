//! Settings: typed values that change how Kring behaves, at run time.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The type of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SettingKind {
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// Text.
    Text,
}

/// A setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Setting {
    /// Its key, such as `vm.stop_timeout`.
    pub key: String,
    /// Its value now.
    pub value: serde_json::Value,
    /// Its value when nobody changed it.
    pub default: serde_json::Value,
    /// The type of the value.
    pub kind: SettingKind,
    /// Smallest number allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest number allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// What it does, with its unit.
    pub description: String,
    /// When it was last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// `PUT /v1/settings/{key}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSetting {
    /// The new value; `null` for the default.
    pub value: serde_json::Value,
}
