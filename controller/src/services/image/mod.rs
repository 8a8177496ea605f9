//! Images: what VMs are made from.
//!
//! An image with a URL is downloaded by one host when it is made, which finds out what it is; every
//! other host downloads it by itself when it first needs it, and must find the same. An uploaded image
//! is kept by the controller, which hosts download it from.

mod create;
mod delete;
mod file;
mod finish_upload;
mod service;

pub use service::sweep_uploads;

use crate::bus::Registry;
use crate::services::Context;
use crate::workflow::Flows;

/// Adds the flows.
pub fn flows(flows: &mut Flows) {
    flows.register::<create::Create>();
    flows.register::<finish_upload::FinishUpload>();
    flows.register::<delete::Delete>();
}

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::create);
    context.serve(registry, service::get);
    context.serve(registry, service::list);
    context.serve(registry, service::finish_upload);
    context.serve(registry, service::delete);
}

#[cfg(test)]
mod tests;
