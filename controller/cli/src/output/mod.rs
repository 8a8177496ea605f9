//! Everything that is written: tables for people, JSON and YAML for programs, notes on standard error.
//!
//! Whatever came from a server or a guest passes [`plain`] before it reaches a terminal.

pub mod table;
pub mod view;

use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

use crate::cli::Format;
use crate::error::{CliError, Result};

/// Whether standard output shows colours: it is a terminal that knows them, and nobody objects.
pub fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Text without the characters that drive a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}

/// Writes a line to standard output.
pub fn line(text: &str) -> Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Writes bytes to standard output as they are.
pub fn raw(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| CliError::io("cannot write the output", e))
}

/// Tells people something that is not the result.
pub fn note(text: &str) {
    // When nobody can read it, it need not be written.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes a value for programs. `Table` and `Name` have their own ways; here they read as YAML.
pub fn value(value: &Value, format: Format) -> Result<()> {
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Protocol(e.to_string()))?;
            line(&text)
        }
        Format::Yaml | Format::Table | Format::Name => {
            let text = serde_yaml_ng::to_string(value).map_err(|e| CliError::Protocol(e.to_string()))?;
            line(text.trim_end())
        }
    }
}

/// What a resource is called: its name, else its key, else its id.
pub fn name_of(item: &Value) -> String {
    ["name", "key", "id", "cursor", "job_id"]
        .iter()
        .find_map(|field| match item.get(field) {
            Some(Value::String(text)) => Some(plain(text)),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        })
        .unwrap_or_else(|| "-".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_called_by_name_then_key_then_id() {
        assert_eq!(name_of(&serde_json::json!({"id": "1", "name": "web"})), "web");
        assert_eq!(name_of(&serde_json::json!({"key": "a.b"})), "a.b");
        assert_eq!(name_of(&serde_json::json!({"id": "1"})), "1");
    }
}
