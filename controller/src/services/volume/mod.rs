//! Volumes: data volumes of their own life. Attaching and detaching belong to the VM, whose owner is
//! asked for it; a root volume is made and removed with its VM.

mod delete;
mod service;

use crate::bus::Registry;
use crate::messages::volume::{AttachVolume, CreateVolume, DeleteVolume, DetachVolume, GetVolume, ListVolumes};
use crate::services::Context;
use crate::workflow::Flows;

/// Adds the flows.
pub fn flows(flows: &mut Flows) {
    flows.register::<delete::Delete>();
}

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, |c, _, m: GetVolume| service::get(c, m));
    context.serve(registry, |c, cx, m: ListVolumes| service::list(c, cx, m));
    context.serve(registry, |c, cx, m: CreateVolume| service::create(c, cx, m));
    context.serve(registry, |c, cx, m: AttachVolume| service::attach(c, cx, m));
    context.serve(registry, |c, cx, m: DetachVolume| service::detach(c, cx, m));
    context.serve(registry, |c, cx, m: DeleteVolume| service::delete(c, cx, m));
}
