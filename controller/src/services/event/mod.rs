//! Events: what happened, in order, resumable from any point. They are appended by those who make them
//! true; here they are only read.

mod service;

use crate::bus::Registry;
use crate::services::Context;

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::list);
    context.serve(registry, service::next);
}

#[cfg(test)]
mod tests;
