//! Hosts: joining, the operator's wishes, and whether they answer.
//!
//! - [`join`]: tokens, joining, renewing certificates.
//! - [`service`]: looking at hosts and changing them.
//! - [`compare`]: a host and the database are brought to agree.
//! - [`orphans`]: what is on a host and belongs to nothing.
//! - [`maintain`]: taking a host out, with its VMs moved away.
//! - [`ping`]: signs of life, and what follows from them.

mod compare;
mod join;
mod maintain;
mod orphans;
mod ping;
mod schedule;
mod service;

use crate::bus::Registry;
use crate::messages::host::{
    CompareHost, CreateJoinToken, DeleteHost, GetHost, HostEvents, HostMissed, JoinHost, ListHosts, MaintainHost,
    ReconnectHost, RenewHost, UpdateHost,
};
use crate::services::Context;
use crate::workflow::Flows;

pub use ping::start as start_pings;

/// Adds the flows.
pub fn flows(flows: &mut Flows) {
    flows.register::<maintain::Maintain>();
}

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    // Registered once: a second one would be the same.
    let _ = context.deps.mover.set(std::sync::Arc::new(maintain::ByBus(context.clone())));
    context.serve(registry, |c, cx, m: MaintainHost| maintain::maintain(c, cx, m));
    context.serve(registry, |c, _, m: GetHost| service::get(c, m));
    context.serve(registry, |c, _, m: ListHosts| service::list(c, m));
    context.serve(registry, |c, cx, m: UpdateHost| service::update(c, cx, m));
    context.serve(registry, |c, cx, m: DeleteHost| service::delete(c, cx, m));
    context.serve(registry, |c, cx, m: ReconnectHost| service::reconnect(c, cx, m));
    context.serve(registry, |c, cx, m: HostEvents| service::events(c, cx, m));
    context.serve(registry, |c, cx, m: CreateJoinToken| join::create_token(c, cx, m));
    context.serve(registry, |c, _, m: JoinHost| join::join(c, m));
    context.serve(registry, |c, _, m: RenewHost| join::renew(c, m));
    context.serve(registry, |c, cx, m: CompareHost| compare::compare(c, cx, m.id));
    context.serve(registry, |c, cx, m: HostMissed| compare::missed(c, cx, m));
}
