//! Whose a resource is: what the gateway asks before it lets a tenant near one.

use std::collections::{BTreeMap, HashMap};

use shared::id::AccountId;
use uuid::Uuid;

use super::gather::Found;
use super::row::rows_in;
use super::{Conn, Result};

/// The table of a noun whose resources belong to accounts, and the column that names the account.
fn owned(noun: &'static str) -> Option<(&'static str, &'static str)> {
    match noun {
        "image" | "network" | "vm" | "volume" | "job" | "token" => Some((noun, "account_id")),
        "account" => Some((noun, "id")),
        _ => None,
    }
}

/// The accounts that resources belong to, by noun and id. Missing: there is no such resource, it
/// belongs to nobody, or its noun is infrastructure.
pub(super) async fn of(
    conn: &mut Conn,
    wanted: &[(&'static str, Uuid)],
) -> Result<Found<(&'static str, Uuid), AccountId>> {
    let mut by_noun: BTreeMap<&'static str, Vec<Uuid>> = BTreeMap::new();
    for (noun, id) in wanted {
        by_noun.entry(noun).or_default().push(*id);
    }
    let mut owners = HashMap::with_capacity(wanted.len());
    for (noun, ids) in by_noun {
        let Some((table, account)) = owned(noun) else { continue };
        let head = format!("SELECT id, {account} AS owner FROM {table} WHERE {account} IS NOT NULL AND id");
        for row in rows_in(conn, &head, ids.iter(), "").await? {
            owners.insert((noun, row.parse("id")?), row.parse("owner"));
        }
    }
    Ok(owners)
}
