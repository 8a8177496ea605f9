//! Requests and answers of the public REST API (`/v1`), one file per noun.
//!
//! Requests refuse unknown fields; answers may gain fields within `/v1` but never change one. Ids in
//! a `Create…` body are optional: a client that chooses one can safely send the request again.

pub mod account;
pub mod cluster;
pub mod controller;
pub mod event;
pub mod host;
pub mod image;
pub mod instance_type;
pub mod job;
pub mod network;
pub mod page;
pub mod service;
pub mod setting;
pub mod storage;
pub mod vm;
pub mod volume;
pub mod zone;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What can be done with a resource now: verb → how.
pub type Links = BTreeMap<String, Link>;

/// One request that a client may send now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Link {
    /// HTTP method.
    pub method: String,
    /// Path on this server.
    pub href: String,
}

impl Link {
    /// A link to `href` by `method`.
    pub fn new(method: &str, href: impl Into<String>) -> Self {
        Self { method: method.to_string(), href: href.into() }
    }
}
