//! Handlers of the setting service.

use serde_json::json;
use shared::Result;
use shared::api::setting::Setting;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::bus::CanonicalEvent;
use crate::cx::Cx;
use crate::db::setting::Changed;
use crate::db::{self, event::NewEvent};
use crate::messages::setting::{GetSetting, ListSettings, SettingChanged, UpdateSetting};
use crate::services::Context;
use crate::settings::{DEFINITIONS, Definition, definition};

pub(super) async fn list(context: Context, _: Cx, _: ListSettings) -> Result<Vec<Setting>> {
    let mut conn = context.deps.db.read().await?;
    let mut changed = db::setting::all(&mut conn).await?;
    Ok(DEFINITIONS.iter().map(|definition| view(definition, changed.remove(definition.key))).collect())
}

pub(super) async fn get(context: Context, _: Cx, message: GetSetting) -> Result<Setting> {
    let definition = definition(&message.key)?;
    let mut conn = context.deps.db.read().await?;
    Ok(view(definition, db::setting::all(&mut conn).await?.remove(definition.key)))
}

pub(super) async fn update(context: Context, cx: Cx, message: UpdateSetting) -> Result<Setting> {
    let definition = definition(&message.key)?;
    let value = message.body.value;
    if !value.is_null() {
        definition.check(&value)?;
    }
    let setting = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let changed = if value.is_null() {
                db::setting::delete(tx, definition.key).await?;
                None
            } else {
                db::setting::upsert(tx, definition.key, &value, now).await?;
                Some(Changed { value, updated_at: now })
            };
            let setting = view(definition, changed);
            let event = NewEvent {
                path: SettingChanged::PATH,
                resource_kind: "setting",
                resource_id: id_of(definition.key),
                account_id: None,
                content: &json!({ "key": setting.key, "value": setting.value }),
                at: now,
            };
            db::event::append(tx, &event)?;
            Ok(setting)
        })
    });
    let setting = setting.await?;
    if !cx.dry_run {
        context.bus()?.publish(&cx, &SettingChanged { key: setting.key.clone() });
    }
    Ok(setting)
}

fn view(definition: &Definition, changed: Option<Changed>) -> Setting {
    let default = definition.default_value();
    let (value, updated_at) = match changed {
        Some(changed) => (changed.value, Some(changed.updated_at)),
        None => (default.clone(), None),
    };
    Setting {
        key: definition.key.to_string(),
        value,
        default,
        kind: definition.kind,
        min: definition.range.map(|(min, _)| min),
        max: definition.range.map(|(_, max)| max),
        description: definition.description.to_string(),
        updated_at,
    }
}

/// Settings are named by their keys; events name resources by ids, so a key has one, always the same.
fn id_of(key: &str) -> Uuid {
    uuid::Builder::from_custom_bytes(xxh3_128(key.as_bytes()).to_be_bytes()).into_uuid()
}
