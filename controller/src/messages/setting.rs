//! Messages of the setting service, and the event that it publishes.

use serde::{Deserialize, Serialize};
use shared::api::setting::{Setting, UpdateSetting as Body};

use crate::auth::Action;
use crate::bus::{ApiRequest, CanonicalEvent, Event, Message, request};

/// Asks for all settings, in order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSettings {}
request!("setting.ListSettings" to "setting" => Vec<Setting>, ListSettings);
impl ApiRequest for ListSettings {
    const ACTION: Action = Action::ReadInfrastructure;
}

/// Asks for one setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetSetting {
    /// Its key.
    pub key: String,
}
request!("setting.GetSetting" to "setting" => Setting, GetSetting);
impl ApiRequest for GetSetting {
    const ACTION: Action = Action::ReadInfrastructure;
}

/// Changes a setting; `null` takes it back to its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateSetting {
    /// Its key.
    pub key: String,
    /// The new value.
    pub body: Body,
}
request!("setting.UpdateSetting" to "setting" => Setting, UpdateSetting);
impl ApiRequest for UpdateSetting {
    const ACTION: Action = Action::Operate;
}

/// A setting changed: `/setting/changed`. Every controller reads its settings again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingChanged {
    /// Its key.
    pub key: String,
}
impl Message for SettingChanged {
    const NAME: &'static str = "setting.SettingChanged";
}
impl Event for SettingChanged {}
impl CanonicalEvent for SettingChanged {
    const PATH: &'static str = "/setting/changed";
}
