//! Accounts and their tokens. Everything here is done at once, without jobs.
//!
//! Secrets are shown once, when they are made; only their hashes are kept.

mod admin;
mod service;
mod token;

pub use admin::{ensure_admin, new_admin_token};

use crate::bus::Registry;
use crate::services::Context;

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::create);
    context.serve(registry, service::get);
    context.serve(registry, service::list);
    context.serve(registry, service::delete);
    context.serve(registry, token::create);
    context.serve(registry, token::get);
    context.serve(registry, token::list);
    context.serve(registry, token::revoke);
    context.serve(registry, token::authenticate);
}

#[cfg(test)]
mod tests;
