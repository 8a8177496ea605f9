//! How a noun becomes a table: its columns, and the names of what it refers to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::de::DeserializeOwned;
use serde_json::Value;
use shared::time::Timestamp;
use uuid::Uuid;

use super::table::{Cell, Head};
use crate::client::Client;
use crate::client::list::Query;
use crate::error::{CliError, Result};
use crate::resolve::Noun;

/// A column of a noun's table.
pub struct Column<T: 'static> {
    /// What it is asked for by in `--columns`, and its heading.
    pub key: &'static str,
    /// Numbers are aligned to the right.
    pub right: bool,
    /// Shown by `--full` and `show` alone.
    pub wide: bool,
    /// What it says.
    pub cell: fn(&T, &View) -> Cell,
}

impl<T> Column<T> {
    /// A column of every table.
    pub const fn new(key: &'static str, cell: fn(&T, &View) -> Cell) -> Self {
        Self { key, right: false, wide: false, cell }
    }
    /// The same, aligned to the right.
    pub const fn number(key: &'static str, cell: fn(&T, &View) -> Cell) -> Self {
        Self { key, right: true, wide: false, cell }
    }
    /// A column for `--full` and `show` alone.
    pub const fn wide(key: &'static str, cell: fn(&T, &View) -> Cell) -> Self {
        Self { key, right: false, wide: true, cell }
    }
    /// The same, aligned to the right.
    pub const fn wide_number(key: &'static str, cell: fn(&T, &View) -> Cell) -> Self {
        Self { key, right: true, wide: true, cell }
    }
}

/// A noun that can be listed and shown.
pub trait Resource: DeserializeOwned + 'static {
    /// The noun.
    const NOUN: Noun;
    /// Its columns, in order.
    const COLUMNS: &'static [Column<Self>];
    /// Other resources whose names its columns show.
    fn refers_to(&self) -> Vec<(Noun, Uuid)> {
        Vec::new()
    }
    /// What `show` says besides the columns.
    fn details(&self, _view: &View) -> Vec<(String, Vec<Cell>)> {
        Vec::new()
    }
}

/// What cells need besides their resource.
#[derive(Default)]
pub struct View {
    /// The time that ages count to.
    pub now: Timestamp,
    /// Whether ids are written whole.
    pub full: bool,
    names: HashMap<Uuid, String>,
}

impl View {
    /// A view that knows the names of what these resources refer to. A name that cannot be found out
    /// is no failure: its id is shown.
    pub async fn of<T: Resource>(client: &Client, items: &[T], full: bool) -> Self {
        let mut wanted: BTreeMap<&'static str, BTreeSet<Uuid>> = BTreeMap::new();
        for (noun, id) in items.iter().flat_map(Resource::refers_to) {
            wanted.entry(noun.path).or_default().insert(id);
        }
        let mut names = HashMap::new();
        for (path, ids) in wanted {
            let ids: Vec<Uuid> = ids.into_iter().collect();
            for some in ids.chunks(50) {
                names.extend(look_up(client, path, some).await);
            }
        }
        Self { now: Timestamp::now(), full, names }
    }

    /// The name of a resource, or its id when that is all there is.
    pub fn name(&self, id: impl shared::id::ResourceId) -> Cell {
        self.name_of(id.uuid())
    }

    /// The same for a bare id.
    pub fn name_of(&self, id: Uuid) -> Cell {
        match self.names.get(&id) {
            Some(name) => Cell::new(name),
            None => self.id(id),
        }
    }

    /// The name of a resource that may not be there.
    pub fn maybe_name(&self, id: Option<impl shared::id::ResourceId>) -> Cell {
        id.map_or_else(|| Cell::new(""), |id| self.name(id))
    }

    /// An id: whole with `--full`, else its last group, which is random and thus tells apart.
    pub fn id(&self, id: Uuid) -> Cell {
        let text = id.to_string();
        if self.full { Cell::new(text) } else { Cell::new(&text[24..]) }
    }

    /// How long ago it was.
    pub fn age(&self, at: Timestamp) -> Cell {
        Cell::new(span(self.now.ms().saturating_sub(at.ms())))
    }
}

async fn look_up(client: &Client, path: &str, ids: &[Uuid]) -> Vec<(Uuid, String)> {
    let list = ids.iter().map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(", ");
    let query = Query {
        q: Some(format!("id in ({list})")),
        fields: Some("id,name".into()),
        limit: Some(ids.len()),
        ..Query::default()
    };
    let Ok(listing) = client.list(&format!("/{path}"), &query).await else { return Vec::new() };
    let pair = |item: &Value| {
        let id = item.get("id")?.as_str()?.parse().ok()?;
        Some((id, item.get("name")?.as_str()?.to_string()))
    };
    listing.items.iter().filter_map(pair).collect()
}

/// A length of time in its largest fitting unit.
pub fn span(ms: i64) -> String {
    let s = ms.max(0) / 1000;
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        172_800..63_072_000 => format!("{}d", s / 86_400),
        _ => format!("{}y", s / 31_536_000),
    }
}

/// Reads what the server gave as the noun's type.
pub fn parse<T: Resource>(item: &Value) -> Result<T> {
    serde_json::from_value(item.clone())
        .map_err(|e| CliError::Protocol(format!("the server's {} cannot be read: {e}", T::NOUN.one)))
}

/// The headings and rows of a table of resources. `wanted` names columns, or fields of the JSON.
pub fn rows<T: Resource>(items: &[(Value, T)], wanted: &[String], view: &View) -> (Vec<Head>, Vec<Vec<Cell>>) {
    if wanted.is_empty() {
        let columns: Vec<&Column<T>> = T::COLUMNS.iter().filter(|c| view.full || !c.wide).collect();
        let heads = columns.iter().map(|c| Head { text: c.key.into(), right: c.right }).collect();
        let rows = items.iter().map(|(_, item)| columns.iter().map(|c| (c.cell)(item, view)).collect()).collect();
        return (heads, rows);
    }
    let find = |key: &str| T::COLUMNS.iter().find(|c| c.key == key);
    let heads = wanted.iter().map(|k| Head { text: k.clone(), right: find(k).is_some_and(|c| c.right) }).collect();
    let row = |(raw, item): &(Value, T)| -> Vec<Cell> {
        wanted.iter().map(|key| find(key).map_or_else(|| path(raw, key), |c| (c.cell)(item, view))).collect()
    };
    (heads, items.iter().map(row).collect())
}

/// The value at a dotted path such as `nics.0.mac`.
fn path(item: &Value, dotted: &str) -> Cell {
    let found = dotted.split('.').try_fold(item, |value, key| match value {
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        other => other.get(key),
    });
    match found {
        None | Some(Value::Null) => Cell::new(""),
        Some(Value::String(text)) => Cell::new(text),
        Some(other) => Cell::new(other),
    }
}

/// The fields of one resource: all columns, then what it says besides, then what can be done with it.
pub fn details<T: Resource>(raw: &Value, item: &T, view: &View) -> Vec<(String, Vec<Cell>)> {
    let mut pairs: Vec<(String, Vec<Cell>)> =
        T::COLUMNS.iter().map(|c| (c.key.replace('_', " "), vec![(c.cell)(item, view)])).collect();
    pairs.extend(item.details(view));
    if let Some(links) = raw.get("links").and_then(Value::as_object) {
        let verbs: Vec<&str> = links.keys().map(String::as_str).filter(|verb| *verb != "self").collect();
        if !verbs.is_empty() {
            pairs.push(("can be".into(), vec![Cell::new(verbs.join(", "))]));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let day = 86_400_000;
        for (ms, text) in
            [(-5, "0s"), (59_999, "59s"), (300_000, "5m"), (day, "24h"), (3 * day, "3d"), (800 * day, "2y")]
        {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn a_dotted_path_reaches_into_lists() {
        let item = serde_json::json!({"nics": [{"mac": "aa"}], "n": 1});
        assert_eq!(path(&item, "nics.0.mac").text, "aa");
        assert_eq!(path(&item, "n").text, "1");
        assert_eq!(path(&item, "nics.1.mac").text, "-");
    }
}
