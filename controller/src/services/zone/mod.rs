//! Zones: failure domains that hold clusters. Everything here is done at once, without jobs.

mod service;

use crate::bus::Registry;
use crate::messages::zone::{CreateZone, DeleteZone, GetZone, ListZones};
use crate::services::Context;

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    let c = context.clone();
    registry.serve(move |cx, m: CreateZone| service::create(c.clone(), cx, m));
    let c = context.clone();
    registry.serve(move |_, m: GetZone| service::get(c.clone(), m));
    let c = context.clone();
    registry.serve(move |_, m: ListZones| service::list(c.clone(), m));
    let c = context.clone();
    registry.serve(move |cx, m: DeleteZone| service::delete(c.clone(), cx, m));
}
