//! From what a user calls a thing to its id.
//!
//! A thing is named by its id, by its name, or by the short id that tables show.

use serde_json::Value;
use shared::name::Name;
use uuid::Uuid;

use crate::client::list::Query;
use crate::client::{Call, Client};
use crate::error::{CliError, Result};

/// A noun of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noun {
    /// One of it, in messages.
    pub one: &'static str,
    /// Its path in the API.
    pub path: &'static str,
    /// Its word on the command line.
    pub command: &'static str,
}

macro_rules! nouns {
    ($($name:ident = $one:literal, $path:literal, $command:literal;)*) => {
        impl Noun {
            $(pub const $name: Self = Self { one: $one, path: $path, command: $command };)*
        }
    };
}

nouns! {
    ACCOUNT = "account", "accounts", "account";
    CLUSTER = "cluster", "clusters", "cluster";
    CONTROLLER = "controller", "controllers", "controller";
    EVENT = "event", "events", "event";
    HOST = "host", "hosts", "host";
    IMAGE = "image", "images", "image";
    INSTANCE_TYPE = "instance type", "instance_types", "instance-type";
    JOB = "job", "jobs", "job";
    NETWORK = "network", "networks", "network";
    SERVICE = "service", "services", "service";
    SETTING = "setting", "settings", "setting";
    STORAGE = "storage", "storages", "storage";
    TOKEN = "token", "tokens", "token";
    VM = "vm", "vms", "vm";
    VOLUME = "volume", "volumes", "volume";
    ZONE = "zone", "zones", "zone";
}

impl Noun {
    /// The path of one of them.
    pub fn path_of(self, id: Uuid) -> String {
        format!("/{}/{id}", self.path)
    }
}

/// The id of what the user means. An id is taken as it is; the server says when it does not exist.
pub async fn id(client: &Client, noun: Noun, given: &str) -> Result<Uuid> {
    if let Some(id) = as_id(given) {
        return Ok(id);
    }
    let found = by_name(client, noun, given).await?;
    id_of(noun, &found)
}

/// The id of something that has no name; `see` shows whole ids.
pub fn whole_id(given: &str, see: &str) -> Result<Uuid> {
    as_id(given).ok_or_else(|| CliError::Usage(format!("\"{given}\" is not a whole id; see: {see}")))
}

/// The resource that the user means.
pub async fn fetch(client: &Client, noun: Noun, given: &str) -> Result<Value> {
    let id = match as_id(given) {
        Some(id) => id,
        None => id_of(noun, &by_name(client, noun, given).await?)?,
    };
    Ok(client.send(Call::get(&noun.path_of(id))).await?.body)
}

fn as_id(given: &str) -> Option<Uuid> {
    Uuid::try_parse(given).ok().filter(|id| !id.is_nil())
}

fn id_of(noun: Noun, item: &Value) -> Result<Uuid> {
    item.get("id")
        .and_then(Value::as_str)
        .and_then(as_id)
        .ok_or_else(|| CliError::Protocol(format!("a {} came without an id", noun.one)))
}

async fn by_name(client: &Client, noun: Noun, given: &str) -> Result<Value> {
    let unknown = || CliError::NoSuchName { noun: noun.one, command: noun.command, name: given.to_string() };
    // What cannot be a name needs no question, and cannot break out of the quotes of one.
    let name: Name = given.parse().map_err(|_| unknown())?;
    let path = format!("/{}", noun.path);
    let query = Query { q: Some(format!("name = \"{name}\"")), limit: Some(10), ..Query::default() };
    let mut found = client.list(&path, &query).await?.items;
    if found.is_empty() && is_short_id(given) {
        let query = Query { q: Some(format!("id like \"%-{given}\"")), limit: Some(10), ..Query::default() };
        // A server that does not compare ids as text says so; then there is no such name, which is true.
        found = client.list(&path, &query).await.map(|listing| listing.items).unwrap_or_default();
    }
    match found.len() {
        0 => Err(unknown()),
        1 => Ok(found.swap_remove(0)),
        _ => Err(CliError::Ambiguous {
            noun: noun.one,
            name: given.to_string(),
            candidates: found.iter().map(candidate).collect(),
        }),
    }
}

fn is_short_id(given: &str) -> bool {
    given.len() == 12 && given.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn candidate(item: &Value) -> String {
    let text = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or("-");
    let state = item.get("state").and_then(Value::as_str).map(|s| format!("  {s}")).unwrap_or_default();
    format!("{}{state}  made {}", text("id"), text("created_at"))
}
