//! Handlers of the volume service.

use shared::api::Link;
use shared::api::image::DiskFormat;
use shared::api::job::JobRef;
use shared::api::page::Page;
use shared::api::volume::{Volume, VolumeKind, VolumeState};
use shared::units::Bytes;
use shared::{Code, Error, Result};

use super::delete::{Delete, State};
use crate::cx::Cx;
use crate::db;
use crate::messages::vm::{AttachVolumeToVm, DetachVolumeFromVm};
use crate::messages::volume::{AttachVolume, CreateVolume, DeleteVolume, DetachVolume, GetVolume, ListVolumes};
use crate::services::{Context, same_or_conflict};

/// Largest volume: what qcow2 and every file system can hold.
const MAX_SIZE: Bytes = Bytes::gib(64 * 1024);

pub(super) async fn create(context: Context, cx: Cx, message: CreateVolume) -> Result<Volume> {
    let body = message.body;
    if body.size < Bytes::mib(1) || body.size > MAX_SIZE || !body.size.0.is_multiple_of(512) {
        return Err(Error::invalid("size", format!("give 1 MiB to {MAX_SIZE} in bytes, a multiple of 512")));
    }
    let account = cx.caller.account().ok_or_else(|| Error::internal("a volume is created by an account"))?;
    let created = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let storage_id = match body.storage_id {
                Some(wanted) => match db::storage::get(tx.conn(), wanted).await? {
                    Some(storage) => storage.id,
                    None => return Err(Error::invalid("storage_id", format!("there is no storage {wanted}")).into()),
                },
                None => {
                    let cluster = db::cluster::named_or_only(tx.conn(), None).await?;
                    let storages = db::storage::of_cluster(tx.conn(), cluster).await?;
                    let first = storages.first().map(|storage| storage.id);
                    first.ok_or_else(|| Error::new(Code::InvalidState, "there is no storage yet: add one first"))?
                }
            };
            let volume = Volume {
                id: message.id,
                name: body.name,
                account_id: account,
                kind: VolumeKind::Data,
                state: VolumeState::Available,
                size: body.size,
                format: body.format.unwrap_or(DiskFormat::Qcow2),
                storage_id,
                host_id: None,
                vm_id: None,
                device: None,
                image_id: None,
                created_at: now,
                links: Default::default(),
            };
            if let Some(existing) = db::volume::get(tx.conn(), volume.id).await? {
                // What has happened to it since does not make the request another one.
                let same = Volume {
                    state: existing.state,
                    host_id: existing.host_id,
                    vm_id: existing.vm_id,
                    device: existing.device.clone(),
                    created_at: existing.created_at,
                    ..volume
                };
                same_or_conflict("volume", &existing, &same)?;
                return Ok(existing);
            }
            db::volume::insert(tx, &volume).await?;
            Ok(volume)
        })
    });
    Ok(with_links(created.await?))
}

pub(super) async fn get(context: Context, message: GetVolume) -> Result<Volume> {
    Ok(with_links(find(&context, message.id).await?))
}

pub(super) async fn list(context: Context, cx: Cx, message: ListVolumes) -> Result<Page<Volume>> {
    let rows = context.deps.db.page(&db::volume::LIST, message.params, cx.caller.scope()).await?;
    Ok(rows.read(db::volume::from_row)?.map(with_links))
}

pub(super) async fn attach(context: Context, cx: Cx, message: AttachVolume) -> Result<JobRef> {
    let volume = find(&context, message.id).await?;
    let vm = {
        let mut conn = context.deps.db.read().await?;
        db::vm::get(&mut conn, message.body.vm_id).await?
    };
    // A VM of another account is as good as none.
    let vm = vm.filter(|row| cx.caller.is_admin() || row.vm.account_id == volume.account_id);
    let vm = vm.ok_or_else(|| Error::invalid("vm_id", format!("there is no vm {}", message.body.vm_id)))?;
    context.bus()?.call(&cx, AttachVolumeToVm { vm: vm.vm.id, volume: volume.id }).await
}

pub(super) async fn detach(context: Context, cx: Cx, message: DetachVolume) -> Result<JobRef> {
    let volume = find(&context, message.id).await?;
    let vm = volume.vm_id.ok_or_else(|| {
        Error::new(Code::InvalidState, format!("volume {} is {}: it is attached to nothing", volume.name, volume.state))
    })?;
    context.bus()?.call(&cx, DetachVolumeFromVm { vm, volume: volume.id }).await
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteVolume) -> Result<JobRef> {
    let volume = find(&context, message.id).await?;
    context.engine.submit::<Delete>(&cx, volume.account_id, State { id: volume.id, place: None }).await
}

async fn find(context: &Context, id: shared::id::VolumeId) -> Result<Volume> {
    let mut conn = context.deps.db.read().await?;
    db::volume::get(&mut conn, id).await?.ok_or_else(|| Error::not_found("volume", id))
}

fn with_links(mut volume: Volume) -> Volume {
    let path = format!("/v1/volumes/{}", volume.id);
    let mut add =
        |verb: &str, method: &str, href: String| volume.links.insert(verb.to_string(), Link::new(method, href));
    add("self", "GET", path.clone());
    match (volume.kind, volume.state) {
        (VolumeKind::Data, VolumeState::Available) => {
            add("attach", "POST", format!("{path}/attach"));
            add("delete", "DELETE", path);
        }
        (VolumeKind::Data, VolumeState::Attached) => {
            add("detach", "POST", format!("{path}/detach"));
        }
        _ => {}
    }
    volume
}
