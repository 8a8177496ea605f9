//! Renaming a VM, and resizing a stopped one; done at once. The new size reaches the host with the
//! next start.

use shared::api::vm::Vm;
use shared::{Code, Error, Result};

use super::accept::{check_size, may_resize};
use super::read;
use crate::cx::Cx;
use crate::db;
use crate::messages::vm::{GetVm, UpdateVm};
use crate::services::Context;

pub(super) async fn update(context: Context, cx: Cx, message: UpdateVm) -> Result<Vm> {
    let UpdateVm { id, body } = message;
    let changed = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let before = db::vm::require(tx.conn(), id).await?;
            let (vcpus, memory) = (body.vcpus.unwrap_or(before.vm.vcpus), body.memory.unwrap_or(before.vm.memory));
            check_size(vcpus, memory)?;
            let resizes = (vcpus, memory) != (before.vm.vcpus, before.vm.memory);
            if resizes && !may_resize(before.vm.state) {
                let text = format!("vm {} is {}: stop it before resizing it", before.vm.name, before.vm.state);
                return Err(Error::new(Code::InvalidState, text).into());
            }
            let name = body.name.unwrap_or_else(|| before.vm.name.clone());
            let auto_start = body.auto_start.unwrap_or(before.vm.auto_start);
            let after = db::vm::Changed { name, vcpus, memory, auto_start };
            db::vm::update(tx, &before, &after).await?;
            let content =
                serde_json::json!({ "name": after.name, "vcpus": vcpus, "memory": memory, "auto_start": auto_start });
            let event = db::event::NewEvent {
                path: "/vm/updated",
                resource_kind: "vm",
                resource_id: shared::id::ResourceId::uuid(id),
                account_id: Some(before.vm.account_id),
                content: &content,
                at: now,
            };
            db::event::append(tx, &event)
        })
    });
    changed.await?;
    read::get(context, GetVm { id }).await
}
