//! Storages: places where volumes are kept. Everything here is done at once, without jobs.
//!
//! Hosts report what they have of a storage; the services of VMs and volumes reserve from it.

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
