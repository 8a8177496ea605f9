//! Looking at VMs.

use std::collections::HashMap;

use shared::api::Link;
use shared::api::page::Page;
use shared::api::vm::{ConsoleLog, Vm, VmState};
use shared::id::VmId;
use shared::wire::vm::ReadConsoleLog;
use shared::{Code, Error, Result};

use crate::agent_client::{HostRef, NoProgress, Order};
use crate::cx::Cx;
use crate::db;
use crate::messages::vm::{ConsoleRoute, GetConsoleLog, GetVm, ListVms, RouteConsole};
use crate::services::Context;

/// Most of a log that is answered at once, in bytes.
const MAX_LOG: u32 = 256 << 10;

pub(super) async fn get(context: Context, message: GetVm) -> Result<Vm> {
    Ok(with_links(find(&context, message.id).await?))
}

/// A VM as users see it, without links.
pub(super) async fn find(context: &Context, id: VmId) -> Result<Vm> {
    context.deps.db.vms.get(id).await?.ok_or_else(|| Error::not_found("vm", id))
}

pub(super) async fn list(context: Context, cx: Cx, message: ListVms) -> Result<Page<Vm>> {
    let rows = context.deps.db.page(&db::vm::LIST, message.params, cx.caller.scope()).await?;
    let page = rows.read(db::vm::from_row)?;
    let ids: Vec<VmId> = page.items.iter().map(|vm| vm.id).collect();
    let nics = context.deps.db.list(move |conn| {
        let ids = ids.clone();
        Box::pin(async move { db::nic::of_vms(conn, &ids).await })
    });
    let mut nics: HashMap<_, _> = nics.await?;
    Ok(page.map(|mut vm| {
        vm.nics = nics.remove(&vm.id).unwrap_or_default();
        with_links(vm)
    }))
}

pub(super) async fn console_log(context: Context, cx: Cx, message: GetConsoleLog) -> Result<ConsoleLog> {
    let host = host_of(&context, message.id).await?;
    let command =
        ReadConsoleLog { vm_id: message.id, offset: message.range.offset, max: message.range.max.min(MAX_LOG) };
    let order = Order::once(context.deps.ring.generation(), cx.deadline);
    context.deps.agents.command(&host, order, &command, &NoProgress).await
}

pub(super) async fn route_console(context: Context, message: RouteConsole) -> Result<ConsoleRoute> {
    let state = find(&context, message.id).await?.state;
    if !matches!(
        state,
        VmState::Running
            | VmState::Paused
            | VmState::Rebooting
            | VmState::Stopping
            | VmState::Creating
            | VmState::Starting
            | VmState::Migrating
    ) {
        return Err(Error::new(Code::InvalidState, format!("the vm is {state}: it has a console only while it runs")));
    }
    let host = host_of(&context, message.id).await?;
    Ok(ConsoleRoute { host_id: host.id, address: host.address })
}

async fn host_of(context: &Context, id: VmId) -> Result<HostRef> {
    let mut conn = context.deps.db.read().await?;
    let vm = db::vm::require(&mut conn, id).await?.vm;
    let host = vm.host_id.ok_or_else(|| Error::new(Code::InvalidState, format!("vm {} is on no host yet", vm.name)))?;
    let host = db::host::get(&mut conn, host).await?.ok_or_else(|| Error::not_found("host", host))?;
    Ok(host.reference())
}

/// Adds what can be done with a VM now.
pub(super) fn with_links(mut vm: Vm) -> Vm {
    use VmState::*;
    let path = format!("/v1/vms/{}", vm.id);
    let mut add = |verb: &str, method: &str, href: String| vm.links.insert(verb.to_string(), Link::new(method, href));
    add("self", "GET", path.clone());
    let verbs: &[&str] = match vm.state {
        Running => &["stop", "reboot", "pause", "migrate", "console"],
        Paused => &["resume", "stop", "migrate", "console"],
        Stopped | Crashed => &["start"],
        Unknown => &["stop"],
        Deleted => &["recover", "expunge"],
        Creating | Starting | Stopping | Rebooting | Pausing | Resuming | Migrating | Deleting | Expunging => &[],
    };
    for verb in verbs {
        add(verb, "POST", format!("{path}/{verb}"));
    }
    if matches!(vm.state, Running | Paused | Stopped | Crashed | Unknown) {
        add("delete", "DELETE", path.clone());
        add("update", "PATCH", path);
    }
    vm
}
