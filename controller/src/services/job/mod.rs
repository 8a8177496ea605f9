//! Jobs: looking at accepted work, waiting for it, cancelling it. The workflow engine runs it.

mod service;
mod wait;

use crate::bus::Registry;
use crate::services::Context;

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::get);
    context.serve(registry, service::list);
    context.serve(registry, service::cancel);
    context.serve(registry, service::stop);
    context.serve(registry, wait::wait);
    context.serve(registry, wait::watch);
}

#[cfg(test)]
mod tests;
