//! Controllers as such: who shares the work, who owns what, and what they tell each other of it.
//!
//! It changes rows of controllers and nothing else; what follows from a change of the ring is
//! [`crate::handover`]'s.

mod report;
mod service;
mod tell;

pub use report::run as report;
pub use tell::run as tell_of_events;

use crate::bus::Registry;
use crate::messages::controller::{EventsAppended, RingChanged};
use crate::services::Context;

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::get);
    context.serve(registry, service::list);
    context.serve(registry, service::drain);
    context.serve(registry, service::activate);
    context.serve(registry, service::ownership);
    context.serve(registry, service::take_up);
    let ring = context.deps.ring.clone();
    registry.subscribe(move |changed: RingChanged| {
        if changed.generation > ring.generation() {
            ring.nudge();
        }
        std::future::ready(())
    });
    let db = context.deps.db.clone();
    registry.subscribe(move |_: EventsAppended| {
        db.wake_event_watchers();
        std::future::ready(())
    });
}

#[cfg(test)]
mod tests;
