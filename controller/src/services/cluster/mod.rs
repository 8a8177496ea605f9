//! Clusters: hosts that share networks and storage. Everything here is done at once, without jobs.

mod service;

use crate::bus::Registry;
use crate::services::Context;

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::create);
    context.serve(registry, service::get);
    context.serve(registry, service::list);
    context.serve(registry, service::delete);
}
