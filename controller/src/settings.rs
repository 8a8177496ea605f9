//! Settings: their definitions, and their values as they are now.
//!
//! Reading is a look into memory. Values are changed by the setting service, which writes them down,
//! and announced by an event, on which every controller reads them again.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;
use shared::Error;
use shared::api::setting::SettingKind;

/// A setting that exists.
#[derive(Debug)]
pub struct Definition {
    /// Its key.
    pub key: &'static str,
    /// The type of its value.
    pub kind: SettingKind,
    /// Its value when nobody changed it, as JSON.
    pub default: &'static str,
    /// Smallest and largest number allowed.
    pub range: Option<(f64, f64)>,
    /// What it does, with its unit.
    pub description: &'static str,
}

macro_rules! settings {
    ($($key:literal, $kind:ident, $default:literal, $range:expr, $description:literal;)*) => {
        /// Every setting, in order of the keys.
        pub const DEFINITIONS: &[Definition] = &[$(Definition {
            key: $key, kind: SettingKind::$kind, default: $default, range: $range, description: $description,
        },)*];
    };
}

settings! {
    "event.keep_days", Number, "30", Some((0.001, 3650.0)), "How long events are kept, in days.";
    "host.compare_interval", Number, "3600", Some((1.0, 604_800.0)), "Time after which a host is asked for everything on it although nothing seems to have changed, in seconds.";
    "host.drain_parallel", Integer, "2", Some((1.0, 32.0)), "VMs that are moved away from a host at a time when it goes into maintenance.";
    "host.ping_interval", Number, "10", Some((0.1, 3600.0)), "Time between two pings of a host, in seconds.";
    "host.ping_misses", Integer, "3", Some((1.0, 100.0)), "Pings in a row that a host may miss before it counts as disconnected.";
    "host.ping_timeout", Number, "5", Some((0.1, 60.0)), "How long a host may take to answer a ping, in seconds.";
    "host.remove_orphans", Boolean, "false", None, "Whether volumes and domains on a host that the database does not know are removed.";
    "host.reserved_memory", Integer, "536870912", Some((0.0, 1e13)), "Memory of each host that is kept for the host itself, in bytes.";
    "image.max_size", Integer, "549755813888", Some((1048576.0, 1e15)), "Largest image file that is accepted, in bytes.";
    "image.max_virtual_size", Integer, "2199023255552", Some((1048576.0, 1e15)), "Largest disk that an image may unfold to, in bytes.";
    "job.keep_days", Number, "30", Some((0.001, 3650.0)), "How long ended jobs are kept, in days.";
    "placement.cpu_overcommit", Number, "10", Some((0.1, 100.0)), "Virtual processors that new clusters reserve per physical one.";
    "placement.memory_overcommit", Number, "1", Some((0.1, 10.0)), "Guest memory that new clusters reserve per byte of host memory.";
    "placement.storage_overcommit", Number, "2", Some((0.1, 100.0)), "Volume bytes that may be promised per byte of a storage.";
    "vm.expunge_after", Integer, "604800", Some((0.0, 3.2e8)), "Time after which a deleted VM is expunged, in seconds.";
    "vm.stop_timeout", Integer, "60", Some((1.0, 3600.0)), "How long a guest may take to stop by itself, in seconds.";
}

/// The definition of a key. An error that says how to find the keys.
pub fn definition(key: &str) -> Result<&'static Definition, Error> {
    let found = DEFINITIONS.iter().find(|definition| definition.key == key);
    found.ok_or_else(|| Error::not_found("setting", format_args!("{key:?}: GET /v1/settings lists them")))
}

impl Definition {
    /// The value when nobody changed it.
    #[must_use]
    pub fn default_value(&self) -> Value {
        serde_json::from_str(self.default).unwrap_or(Value::Null)
    }

    /// Refuses a value of another type or out of range.
    pub fn check(&self, value: &Value) -> Result<(), Error> {
        let right_kind = match self.kind {
            SettingKind::Integer => value.is_i64() || value.is_u64(),
            SettingKind::Number => value.is_number(),
            SettingKind::Boolean => value.is_boolean(),
            SettingKind::Text => value.is_string(),
        };
        if !right_kind {
            let kind = format!("{:?}", self.kind).to_lowercase();
            return Err(Error::invalid(
                "value",
                format!("{} takes a value of the kind {kind}, such as {}", self.key, self.default),
            ));
        }
        if let (Some((min, max)), Some(number)) = (self.range, value.as_f64())
            && !(min..=max).contains(&number)
        {
            return Err(Error::invalid("value", format!("{} takes a number from {min} to {max}", self.key)));
        }
        Ok(())
    }
}

/// The settings as they are now. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    changed: Arc<ArcSwap<HashMap<String, Value>>>,
}

impl Settings {
    /// Takes over the values that differ from the defaults.
    pub fn install(&self, values: HashMap<String, Value>) {
        self.changed.store(Arc::new(values));
    }

    fn value(&self, key: &'static str) -> Value {
        let changed = self.changed.load().get(key).cloned();
        changed.unwrap_or_else(|| definition(key).map_or(Value::Null, Definition::default_value))
    }

    /// A setting that is a number.
    #[must_use]
    pub fn number(&self, key: &'static str) -> f64 {
        self.value(key).as_f64().unwrap_or_default()
    }

    /// A setting that is a whole number and not negative.
    #[must_use]
    pub fn integer(&self, key: &'static str) -> u64 {
        self.value(key).as_u64().unwrap_or_default()
    }

    /// A setting that is true or false.
    #[must_use]
    pub fn boolean(&self, key: &'static str) -> bool {
        self.value(key).as_bool().unwrap_or_default()
    }

    /// A setting that is a time in seconds.
    #[must_use]
    pub fn seconds(&self, key: &'static str) -> std::time::Duration {
        std::time::Duration::from_secs_f64(self.number(key).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_default_is_allowed_and_keys_are_in_order() {
        for definition in DEFINITIONS {
            assert_eq!(definition.check(&definition.default_value()), Ok(()), "{}", definition.key);
        }
        assert!(DEFINITIONS.is_sorted_by(|a, b| a.key < b.key));
    }

    #[test]
    fn wrong_values_are_refused_and_changed_ones_are_seen() {
        let timeout = definition("vm.stop_timeout").unwrap();
        for bad in [json!("60"), json!(0), json!(1.5), json!(null), json!(4000)] {
            assert!(timeout.check(&bad).is_err(), "{bad}");
        }
        let settings = Settings::default();
        assert_eq!(settings.integer("vm.stop_timeout"), 60);
        settings.install(HashMap::from([("vm.stop_timeout".to_string(), json!(5))]));
        assert_eq!(settings.integer("vm.stop_timeout"), 5);
        assert!(definition("no.such").is_err());
    }
}
