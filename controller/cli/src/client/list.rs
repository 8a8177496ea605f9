//! Reading lists page by page.

use serde_json::Value;

use super::{Call, Client};
use crate::error::{CliError, Result};

/// The largest page that the server gives.
const MAX_PAGE: usize = shared::api::page::MAX_LIMIT as usize;

/// What is asked of a list.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Filter.
    pub q: Option<String>,
    /// Order.
    pub sort: Option<String>,
    /// Fields to answer.
    pub fields: Option<String>,
    /// How many items at most; none: all of them.
    pub limit: Option<usize>,
}

/// Items, and whether there are more than were asked for.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The items as the server gave them.
    pub items: Vec<Value>,
    /// Whether there are more.
    pub more: bool,
}

impl Client {
    /// Reads a list, as many pages as it takes.
    pub async fn list(&self, path: &str, query: &Query) -> Result<Listing> {
        let mut listing = Listing::default();
        let mut cursor: Option<String> = None;
        loop {
            let left = query.limit.map_or(MAX_PAGE, |limit| limit - listing.items.len()).min(MAX_PAGE);
            let mut call = Call::get(path).query("limit", left);
            for (key, value) in [("q", &query.q), ("sort", &query.sort), ("fields", &query.fields), ("cursor", &cursor)]
            {
                if let Some(value) = value {
                    call = call.query(key, value);
                }
            }
            let mut body = self.send(call).await?.body;
            let Some(items) = body.get_mut("items").and_then(Value::as_array_mut) else {
                return Err(CliError::Protocol(format!("the list {path} has no items")));
            };
            let got = items.len();
            listing.items.append(items);
            cursor = body.get("next_cursor").and_then(Value::as_str).map(str::to_string);
            let enough = query.limit.is_some_and(|limit| listing.items.len() >= limit);
            // An empty page with a cursor would have us ask for ever.
            if cursor.is_none() || enough || got == 0 {
                listing.more = cursor.is_some() && enough;
                return Ok(listing);
            }
        }
    }

    /// How many items match.
    pub async fn count(&self, path: &str, q: Option<&str>) -> Result<u64> {
        let mut call = Call::get(path).query("limit", 1).query("count", true);
        if let Some(q) = q {
            call = call.query("q", q);
        }
        let body = self.send(call).await?.body;
        body.get("count")
            .and_then(Value::as_u64)
            .ok_or_else(|| CliError::Protocol(format!("the list {path} was not counted")))
    }
}
