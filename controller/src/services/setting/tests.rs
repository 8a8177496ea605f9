//! Settings through the bus.

use serde_json::{Value, json};
use shared::api::setting::{Setting, UpdateSetting as Body};
use shared::{Code, Result};

use crate::messages::setting::{GetSetting, ListSettings, UpdateSetting};
use crate::services::testing::{TestSystem, systems};

async fn set(system: &TestSystem, key: &str, value: Value) -> Result<Setting> {
    system.by_admin(UpdateSetting { key: key.to_string(), body: Body { value } }).await
}

/// Lets the subscriber run until the setting has the value.
async fn until(system: &TestSystem, seconds: u64) {
    while system.context.deps.settings.integer("vm.stop_timeout") != seconds {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_change_is_kept_announced_and_taken_over_and_null_is_the_default() {
    for system in systems().await {
        let changed = set(&system, "vm.stop_timeout", json!(5)).await.unwrap();
        assert_eq!((&changed.value, &changed.default, changed.min), (&json!(5), &json!(60), Some(1.0)));
        assert_eq!(system.by_admin(GetSetting { key: changed.key.clone() }).await.unwrap(), changed);
        until(&system, 5).await;
        let back = set(&system, "vm.stop_timeout", Value::Null).await.unwrap();
        assert_eq!((back.value, back.updated_at), (json!(60), None));
        until(&system, 60).await;
        assert_eq!(system.event_paths().await, ["/setting/changed", "/setting/changed"]);
        let all = system.by_admin(ListSettings {}).await.unwrap();
        assert!(all.is_sorted_by(|a, b| a.key < b.key) && all.iter().all(|s| s.value == s.default));
    }
}

#[tokio::test]
async fn nonsense_changes_nothing() {
    for system in systems().await {
        assert_eq!(set(&system, "no.such", json!(1)).await.unwrap_err().code, Code::NotFound);
        for bad in [json!("5"), json!(0), json!(1e9), json!([]), json!(1.5)] {
            assert_eq!(set(&system, "vm.stop_timeout", bad).await.unwrap_err().fields[0].field, "value");
        }
        assert_eq!(system.event_paths().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_stored_value_that_is_not_allowed_any_more_is_left_at_its_default() {
    for system in systems().await {
        let written = system.context.deps.db.write(|tx| {
            Box::pin(async move {
                let now = shared::time::Timestamp(0);
                crate::db::setting::upsert(tx, "vm.stop_timeout", &json!(-1), now).await?;
                crate::db::setting::upsert(tx, "from.the.future", &json!(1), now).await?;
                crate::db::setting::upsert(tx, "job.keep_days", &json!(7), now).await
            })
        });
        written.await.unwrap();
        super::load(&system.context.deps).await.unwrap();
        let settings = &system.context.deps.settings;
        assert_eq!((settings.integer("vm.stop_timeout"), settings.integer("job.keep_days")), (60, 7));
    }
}
