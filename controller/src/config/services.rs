//! `[services]`: which services a controller starts.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Services that Kring cannot do without: who may ask, what was accepted and what became of it, and
/// what keeps the database true to the hosts.
pub const NEEDED: &[&str] = &["account", "controller", "event", "host", "job", "setting", "vm"];
/// Services that can be switched off. What they have made stays, and can be used by the others.
pub const OPTIONAL: &[&str] = &["cluster", "image", "instance_type", "network", "storage", "volume", "zone"];

/// `[services]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServicesConfig {
    /// Names of services that are not started.
    #[serde(deserialize_with = "optional")]
    pub disabled: Vec<String>,
}

impl ServicesConfig {
    /// Whether a service is not started.
    #[must_use]
    pub fn is_disabled(&self, name: &str) -> bool {
        self.disabled.iter().any(|disabled| disabled == name)
    }
}

fn optional<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(d)?;
    match names.iter().find(|name| !OPTIONAL.contains(&name.as_str())) {
        None => Ok(names),
        Some(name) if NEEDED.contains(&name.as_str()) => Err(D::Error::custom(format!(
            "services.disabled: the service \"{name}\" cannot be disabled, because Kring cannot work without {}; {}",
            NEEDED.join(", "),
            can_be()
        ))),
        Some(name) => Err(D::Error::custom(format!("services.disabled: there is no service \"{name}\"; {}", can_be()))),
    }
}

fn can_be() -> String {
    format!("these can be disabled: {}", OPTIONAL.join(", "))
}
