//! Reading and merging: every source is checked alone, so an error can name it, and then all together.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, DEFAULT_TOML};

/// Where configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file.
    File {
        /// Its path, for errors.
        path: PathBuf,
        /// Its text.
        text: String,
    },
    /// An environment variable that stands for a key.
    Env {
        /// The variable.
        name: String,
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// `--set key=value`.
    Set(String),
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A source does not say what it must; the message shows key, and for a file line and column.
    #[error("{origin}: {message}")]
    Invalid {
        /// The file, the variable or the option.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// `--set` without `=`.
    #[error("--set {0}: give KEY=VALUE, such as --set api.listen=0.0.0.0:8443")]
    Set(String),
}

/// The variables of the environment that stand for a key.
pub(super) fn from_env(vars: impl Iterator<Item = (OsString, OsString)>) -> Vec<Source> {
    let mut keys = Vec::new();
    let manual: Table = toml::from_str(DEFAULT_TOML).unwrap_or_default();
    flatten("", &manual, &mut keys);
    let mut found: Vec<_> = vars
        .filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            let key = keys.iter().find(|key| variable(key) == name)?.clone();
            Some(Source::Env { name, key, value })
        })
        .collect();
    found.sort_by_key(|source| format!("{source:?}"));
    found
}

/// The variable for a key.
fn variable(key: &str) -> String {
    format!("KRING_{}", key.replace('.', "_").to_ascii_uppercase())
}

fn flatten(prefix: &str, table: &Table, keys: &mut Vec<String>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => flatten(&key, inner, keys),
            _ => keys.push(key),
        }
    }
}

pub(super) fn merge(sources: &[Source]) -> Result<Config, Error> {
    let mut merged = Table::new();
    for source in sources {
        let (origin, text) = match source {
            Source::File { path, text } => (path.display().to_string(), text.clone()),
            Source::Env { name, key, value } => (name.clone(), assignment(key, value)),
            Source::Set(text) => {
                let (key, value) = text.split_once('=').ok_or_else(|| Error::Set(text.clone()))?;
                (format!("--set {}", key.trim()), assignment(key.trim(), value))
            }
        };
        let positions = matches!(source, Source::File { .. });
        let invalid = |e: toml::de::Error| Error::Invalid {
            origin: origin.clone(),
            message: if positions { e.to_string().trim_end().to_string() } else { e.message().to_string() },
        };
        // Alone, for errors with their place; what is not said there is the default.
        toml::from_str::<Config>(&text).map_err(invalid)?;
        overlay(&mut merged, toml::from_str(&text).map_err(invalid)?);
    }
    let invalid = |message| Error::Invalid { origin: "the configuration".into(), message };
    let config = Config::deserialize(Value::Table(merged)).map_err(|e| invalid(e.message().to_string()))?;
    config.check().map_err(invalid)?;
    Ok(config)
}

/// `key = value` in TOML; a value that is no TOML value by itself is text.
fn assignment(key: &str, value: &str) -> String {
    let plain = format!("{key} = {value}");
    // A key of text stays text when its value looks like a number or a word of TOML.
    if toml::from_str::<Config>(&plain).is_ok() {
        return plain;
    }
    let quoted = format!("{key} = {}", Value::String(value.to_string()));
    match (toml::from_str::<Config>(&quoted), toml::from_str::<Table>(&plain)) {
        (Err(_), Ok(_)) => plain,
        _ => quoted,
    }
}

fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => overlay(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
