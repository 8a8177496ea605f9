//! `kring setting`: values that change how Kring behaves.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};
use shared::api::setting::{Setting, SettingKind};

use super::verbs;
use crate::cli::ListArgs;
use crate::client::Call;
use crate::context::Ctx;
use crate::error::{CliError, Result};
use crate::output::line;
use crate::output::table::{Cell, Tone};
use crate::output::view::{Column, Resource, View, parse};
use crate::resolve::Noun;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List settings
    #[command(after_help = "Examples:\n  kring setting list\n  kring setting list -q 'key like \"vm.%\"'")]
    List(ListArgs),
    /// Show a setting and what it does
    #[command(after_help = "Examples:\n  kring setting show vm.stop_timeout")]
    Show {
        /// Its key
        key: String,
    },
    /// Change a setting; it takes effect at once
    #[command(after_help = "Examples:\n  kring setting set vm.stop_timeout 120")]
    Set {
        /// Its key
        key: String,
        /// The new value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Give settings their defaults back
    #[command(after_help = "Examples:\n  kring setting reset vm.stop_timeout")]
    Reset {
        /// Their keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

/// Runs a verb.
pub async fn run(ctx: &Ctx, command: Command) -> Result<()> {
    match command {
        Command::List(args) => verbs::list::<Setting>(ctx, &args).await,
        Command::Show { key } => {
            let raw = get(ctx, &key).await?;
            verbs::print_one::<Setting>(ctx, &raw).await
        }
        Command::Set { key, value } => {
            let setting: Setting = parse(&get(ctx, &key).await?)?;
            put(ctx, &key, typed(&setting, &value)?).await
        }
        Command::Reset { keys } => {
            for key in keys {
                put(ctx, &key, Value::Null).await?;
            }
            Ok(())
        }
    }
}

fn path(key: &str) -> Result<String> {
    let ok = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    match ok {
        true => Ok(format!("/settings/{key}")),
        false => Err(CliError::NoSuchName { noun: "setting", command: "setting", name: key.to_string() }),
    }
}

async fn get(ctx: &Ctx, key: &str) -> Result<Value> {
    Ok(ctx.client.send(Call::get(&path(key)?)).await?.body)
}

async fn put(ctx: &Ctx, key: &str, value: Value) -> Result<()> {
    let path = path(key)?;
    let reply = ctx.client.send(Call::new(Method::PUT, &path).body(json!({"value": value}))).await?;
    if !ctx.for_people() {
        return verbs::print_one::<Setting>(ctx, &reply.body).await;
    }
    match parse::<Setting>(&reply.body) {
        Ok(setting) => line(&format!("{key} = {}", shown(&setting.value))),
        Err(_) => line(&format!("{key} is changed")),
    }
}

/// The value as the setting's type wants it; the server checks its range.
fn typed(setting: &Setting, text: &str) -> Result<Value> {
    let wrong = |what: &str| CliError::Usage(format!("{} takes {what}, and \"{text}\" is not one", setting.key));
    match setting.kind {
        SettingKind::Text => Ok(Value::from(text)),
        SettingKind::Integer => text.parse::<i64>().map(Value::from).map_err(|_| wrong("a whole number")),
        SettingKind::Number => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Value::from(number)),
            _ => Err(wrong("a number")),
        },
        SettingKind::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" => Ok(Value::from(true)),
            "false" | "off" | "no" => Ok(Value::from(false)),
            _ => Err(wrong("true or false")),
        },
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

impl Resource for Setting {
    const NOUN: Noun = Noun::SETTING;
    const COLUMNS: &'static [Column<Self>] = &[
        Column::new("key", |setting, _| Cell::new(&setting.key)),
        Column::number("value", |setting, _| {
            let tone = if setting.value == setting.default { Tone::Normal } else { Tone::Busy };
            Cell::new(shown(&setting.value)).tone(tone)
        }),
        Column::number("default", |setting, _| Cell::new(shown(&setting.default))),
        Column::wide("kind", |setting, _| Cell::new(format!("{:?}", setting.kind).to_lowercase())),
        Column::new("description", |setting, _| Cell::new(&setting.description)),
    ];

    fn details(&self, view: &View) -> Vec<(String, Vec<Cell>)> {
        let mut pairs = Vec::new();
        if let (Some(min), Some(max)) = (self.min, self.max) {
            pairs.push(("range".to_string(), vec![Cell::new(format!("{min} to {max}"))]));
        }
        if let Some(at) = self.updated_at {
            pairs.push(("changed".to_string(), vec![Cell::new(format!("{} ago", view.age(at).text))]));
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(kind: SettingKind) -> Setting {
        Setting {
            key: "a.b".into(),
            value: Value::Null,
            default: Value::Null,
            kind,
            min: None,
            max: None,
            description: String::new(),
            updated_at: None,
        }
    }

    #[test]
    fn a_value_is_read_by_the_settings_type() {
        assert_eq!(typed(&setting(SettingKind::Text), "12").unwrap(), json!("12"));
        assert_eq!(typed(&setting(SettingKind::Integer), "-12").unwrap(), json!(-12));
        assert_eq!(typed(&setting(SettingKind::Number), "1.5").unwrap(), json!(1.5));
        assert_eq!(typed(&setting(SettingKind::Boolean), "Off").unwrap(), json!(false));
        assert_eq!(typed(&setting(SettingKind::Integer), "1.5").unwrap_err().exit_code(), 2);
        assert_eq!(typed(&setting(SettingKind::Number), "nan").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_key_cannot_leave_its_path() {
        assert!(path("../vms").is_err());
        assert!(path("a/b").is_err());
        assert_eq!(path("vm.stop_timeout").unwrap(), "/settings/vm.stop_timeout");
    }
}
