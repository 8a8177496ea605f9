//! Handlers of the instance type service.

use serde_json::json;
use shared::api::Link;
use shared::api::instance_type::InstanceType;
use shared::api::page::Page;
use shared::units::Bytes;
use shared::{Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::instance_type::{CreateInstanceType, DeleteInstanceType, GetInstanceType, ListInstanceTypes};
use crate::services::{Context, announce, same_or_conflict};

/// Most virtual processors of a VM.
const MAX_VCPUS: u32 = 512;
/// Least memory that a guest boots in.
const MIN_MEMORY: Bytes = Bytes::mib(16);
/// More than any machine has; keeps sums of sizes within a database column.
const MAX_MEMORY: Bytes = Bytes::gib(64 << 10);

pub(super) async fn create(context: Context, cx: Cx, message: CreateInstanceType) -> Result<InstanceType> {
    let body = message.body;
    if !(1..=MAX_VCPUS).contains(&body.vcpus) {
        return Err(Error::invalid("vcpus", format!("must be 1 to {MAX_VCPUS}")));
    }
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&body.memory) {
        return Err(Error::invalid("memory", format!("must be {MIN_MEMORY} to {MAX_MEMORY}, in bytes")));
    }
    let instance_type = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let instance_type = InstanceType {
                id: message.id,
                name: body.name,
                vcpus: body.vcpus,
                memory: body.memory,
                created_at: now,
                links: Default::default(),
            };
            if let Some(existing) = db::instance_type::get(tx.conn(), instance_type.id).await? {
                let same = InstanceType { created_at: existing.created_at, ..instance_type };
                same_or_conflict("instance type", &existing, &same)?;
                return Ok(existing);
            }
            db::instance_type::insert(tx, &instance_type).await?;
            announce(tx, instance_type.id, "created", None, &json!({ "name": instance_type.name }), now)?;
            Ok(instance_type)
        })
    });
    Ok(with_links(instance_type.await?))
}

pub(super) async fn get(context: Context, _: Cx, message: GetInstanceType) -> Result<InstanceType> {
    let mut conn = context.deps.db.read().await?;
    let instance_type = db::instance_type::get(&mut conn, message.id).await?;
    instance_type.map(with_links).ok_or_else(|| Error::not_found("instance type", message.id))
}

pub(super) async fn list(context: Context, _: Cx, message: ListInstanceTypes) -> Result<Page<InstanceType>> {
    let page = context.deps.db.page(&db::instance_type::LIST, message.params, None).await?;
    Ok(page.read(db::instance_type::from_row)?.map(with_links))
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteInstanceType) -> Result<()> {
    let deleted = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let instance_type = db::instance_type::get(tx.conn(), message.id).await?;
            let instance_type = instance_type.ok_or_else(|| Error::not_found("instance type", message.id))?;
            db::instance_type::delete(tx, instance_type.id).await?;
            announce(tx, instance_type.id, "deleted", None, &json!({ "name": instance_type.name }), now)
        })
    });
    deleted.await
}

fn with_links(mut instance_type: InstanceType) -> InstanceType {
    let path = format!("/v1/instance_types/{}", instance_type.id);
    instance_type.links.insert("self".into(), Link::new("GET", path.as_str()));
    instance_type.links.insert("delete".into(), Link::new("DELETE", path));
    instance_type
}
