//! VMs: their verbs, each a flow in a file of its own, and what hosts report of them.
//!
//! - [`create`], [`start`], [`stop`], [`reboot`], [`pause`], [`resume`], [`delete`], [`recover`],
//!   [`expunge`], [`attach_volume`], [`detach_volume`], [`migrate`]: the flows.
//! - [`transition`]: what the flows between two states have in common.
//! - [`placement`]: which host takes a VM. [`spec`]: what a host is told of a VM.
//! - [`accept`]: checks a request and submits its flow. [`read`]: looks things up.
//! - [`observe`]: what hosts report is compared with what the database says.

mod accept;
mod attach_volume;
mod create;
mod delete;
mod detach_volume;
mod expunge;
mod migrate;
mod observe;
mod pause;
mod read;
mod reboot;
mod recover;
mod resume;
mod spec;
mod start;
mod stop;
mod transition;
mod update;

use crate::bus::Registry;
use crate::messages::vm::{
    AttachVolumeToVm, CreateVm, DeleteVm, DetachVolumeFromVm, ExpungeVm, GetConsoleLog, GetVm, ListVms, MigrateVm,
    PauseVm, PlanVm, RebootVm, RecoverVm, ResumeVm, RouteConsole, StartVm, StopVm, UpdateVm, VmLost, VmObserved,
};
use crate::services::Context;
use crate::workflow::Flows;

/// Adds the flows.
pub fn flows(flows: &mut Flows) {
    flows.register::<create::Create>();
    flows.register::<start::Start>();
    flows.register::<stop::Stop>();
    flows.register::<reboot::Reboot>();
    flows.register::<pause::Pause>();
    flows.register::<resume::Resume>();
    flows.register::<delete::Delete>();
    flows.register::<recover::Recover>();
    flows.register::<expunge::Expunge>();
    flows.register::<migrate::Migrate>();
    flows.register::<attach_volume::Attach>();
    flows.register::<detach_volume::Detach>();
}

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, |c, _, m: GetVm| read::get(c, m));
    context.serve(registry, |c, cx, m: ListVms| read::list(c, cx, m));
    context.serve(registry, |c, cx, m: GetConsoleLog| read::console_log(c, cx, m));
    context.serve(registry, |c, _, m: RouteConsole| read::route_console(c, m));

    context.serve(registry, |c, cx, m: CreateVm| accept::create(c, cx, m));
    context.serve(registry, |c, cx, m: PlanVm| accept::plan(c, cx, m));
    context.serve(registry, |c, cx, m: StartVm| accept::verb::<start::Start>(c, cx, m.id));
    context.serve(registry, |c, cx, m: StopVm| accept::stop::<stop::Stop>(c, cx, m.id, m.body));
    context.serve(registry, |c, cx, m: RebootVm| accept::stop::<reboot::Reboot>(c, cx, m.id, m.body));
    context.serve(registry, |c, cx, m: PauseVm| accept::verb::<pause::Pause>(c, cx, m.id));
    context.serve(registry, |c, cx, m: ResumeVm| accept::verb::<resume::Resume>(c, cx, m.id));
    context.serve(registry, |c, cx, m: MigrateVm| accept::migrate(c, cx, m));
    context.serve(registry, |c, cx, m: DeleteVm| accept::verb::<delete::Delete>(c, cx, m.id));
    context.serve(registry, |c, cx, m: RecoverVm| accept::verb::<recover::Recover>(c, cx, m.id));
    context.serve(registry, |c, cx, m: ExpungeVm| accept::verb::<expunge::Expunge>(c, cx, m.id));
    context.serve(registry, |c, cx, m: AttachVolumeToVm| accept::disk::<attach_volume::Attach>(c, cx, m.vm, m.volume));
    context
        .serve(registry, |c, cx, m: DetachVolumeFromVm| accept::disk::<detach_volume::Detach>(c, cx, m.vm, m.volume));
    context.serve(registry, |c, cx, m: UpdateVm| update::update(c, cx, m));

    context.serve(registry, |c, cx, m: VmObserved| observe::observed(c, cx, m));
    context.serve(registry, |c, _, m: VmLost| observe::lost(c, m));
}
