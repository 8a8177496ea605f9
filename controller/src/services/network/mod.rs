//! Networks: what VMs are connected to. A network is made in the database only; a host sets it up when
//! the first VM there needs it. Removing one is a job, because hosts have it.

mod address;
mod delete;
mod service;

use crate::bus::Registry;
use crate::services::Context;
use crate::workflow::Flows;

/// Adds the flows.
pub fn flows(flows: &mut Flows) {
    flows.register::<delete::Delete>();
}

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::create);
    context.serve(registry, service::get);
    context.serve(registry, service::list);
    context.serve(registry, service::delete);
}

#[cfg(test)]
mod tests;
