//! Looking at hosts and changing them.

use std::time::Duration;

use shared::api::Link;
use shared::api::host::{Host, HostAdminState};
use shared::api::page::Page;
use shared::wire::event::AgentEvent;
use shared::{Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::host::{CompareHost, DeleteHost, GetHost, HostEvents, ListHosts, ReconnectHost, UpdateHost};
use crate::messages::vm::VmObserved;
use crate::services::{Context, announce, still_used};

/// How many VMs are told of at a time.
const PARALLEL: usize = 32;
/// How long the comparison after an agent's start may take.
const COMPARE: Duration = Duration::from_secs(90);

pub(super) async fn get(context: Context, message: GetHost) -> Result<Host> {
    let mut conn = context.deps.db.read().await?;
    let row = db::host::get(&mut conn, message.id).await?;
    row.map(|row| with_links(row.host)).ok_or_else(|| Error::not_found("host", message.id))
}

pub(super) async fn list(context: Context, message: ListHosts) -> Result<Page<Host>> {
    let rows = context.deps.db.page(&db::host::LIST, message.params, None).await?;
    Ok(rows.read(db::host::from_row)?.map(with_links))
}

pub(super) async fn update(context: Context, cx: Cx, message: UpdateHost) -> Result<Host> {
    let UpdateHost { id, body } = message;
    let body_enables = body.admin_state.is_some_and(|state| state != HostAdminState::Maintenance);
    let changed = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let row = db::host::get(tx.conn(), id).await?.ok_or_else(|| Error::not_found("host", id))?;
            let name = body.name.unwrap_or(row.host.name);
            let admin_state = body.admin_state.unwrap_or(row.host.admin_state);
            db::host::update(tx, id, &name, admin_state).await?;
            if admin_state != row.host.admin_state {
                let content = serde_json::json!({ "from": row.host.admin_state, "to": admin_state });
                announce(tx, id, "admin_state/changed", None, &content, now)?;
            }
            Ok(())
        })
    });
    changed.await?;
    if body_enables {
        // VMs that were to be started when the host came back, and could not, are started now.
        context.bus()?.notify(&Cx::system(COMPARE), CompareHost { id });
    }
    get(context, GetHost { id }).await
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteHost) -> Result<()> {
    let id = message.id;
    let deleted = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let in_use = "the host has VMs or volumes: expunge or move them first";
            match db::host::delete(tx, id).await.map_err(|error| still_used(error, in_use))? {
                true => announce(tx, id, "deleted", None, &serde_json::json!({}), now),
                false => Err(Error::not_found("host", id).into()),
            }
        })
    });
    deleted.await
}

pub(super) async fn reconnect(context: Context, cx: Cx, message: ReconnectHost) -> Result<Host> {
    super::compare::compare(context.clone(), cx, message.id).await?;
    get(context, GetHost { id: message.id }).await
}

/// What a host tells by itself. The host is who its certificate says, so it can only tell of itself;
/// the VM service checks that a VM is on that host.
pub(super) async fn events(context: Context, cx: Cx, message: HostEvents) -> Result<()> {
    let known = {
        let mut conn = context.deps.db.read().await?;
        db::host::get(&mut conn, message.id).await?.is_some()
    };
    if !known {
        return Err(Error::not_found("host", message.id));
    }
    let bus = context.bus()?;
    let host_id = message.id;
    let mut observed = Vec::new();
    for event in message.events {
        match event {
            AgentEvent::VmChanged { vm } => {
                observed.push(VmObserved { id: vm.vm_id, host_id, report: Some(vm), as_of: None, rebooted: false });
            }
            AgentEvent::VmGone { vm_id } => {
                observed.push(VmObserved { id: vm_id, host_id, report: None, as_of: None, rebooted: false });
            }
            // Not waited for: the comparison runs in this host's queue, which is here now.
            AgentEvent::AgentStarted => bus.notify(&Cx::system(COMPARE), CompareHost { id: host_id }),
        }
    }
    // They enter their queues in the order in which they happened.
    for result in bus.call_all(&cx, PARALLEL, observed).await {
        result?;
    }
    Ok(())
}

/// Adds what can be done with a host now.
pub(super) fn with_links(mut host: Host) -> Host {
    let path = format!("/v1/hosts/{}", host.id);
    let mut add = |verb: &str, method: &str, href: String| host.links.insert(verb.to_string(), Link::new(method, href));
    add("self", "GET", path.clone());
    add("update", "PATCH", path.clone());
    add("reconnect", "POST", format!("{path}/reconnect"));
    add("maintain", "POST", format!("{path}/maintain"));
    if host.admin_state != HostAdminState::Enabled || host.capacity.vcpus_reserved == 0 {
        add("delete", "DELETE", path);
    }
    host
}
