//! Handlers of the zone service.

use serde_json::json;
use shared::api::Link;
use shared::api::page::Page;
use shared::api::zone::Zone;
use shared::{Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::zone::{CreateZone, DeleteZone, GetZone, ListZones};
use crate::services::{Context, announce, check_text, same_or_conflict, still_used};

pub(super) async fn create(context: Context, cx: Cx, message: CreateZone) -> Result<Zone> {
    check_text("description", &message.body.description, 1000)?;
    let zone = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let zone = Zone {
                id: message.id,
                name: message.body.name,
                description: message.body.description,
                created_at: now,
                links: Default::default(),
            };
            if let Some(existing) = db::zone::get(tx.conn(), zone.id).await? {
                let same = Zone { created_at: existing.created_at, ..zone };
                same_or_conflict("zone", &existing, &same)?;
                return Ok(existing);
            }
            db::zone::insert(tx, &zone).await?;
            announce(tx, zone.id, "created", None, &json!({ "name": zone.name }), now)?;
            Ok(zone)
        })
    });
    Ok(with_links(zone.await?))
}

pub(super) async fn get(context: Context, _: Cx, message: GetZone) -> Result<Zone> {
    let mut conn = context.deps.db.read().await?;
    let zone = db::zone::get(&mut conn, message.id).await?;
    zone.map(with_links).ok_or_else(|| Error::not_found("zone", message.id))
}

pub(super) async fn list(context: Context, _: Cx, message: ListZones) -> Result<Page<Zone>> {
    let page = context.deps.db.page(&db::zone::LIST, message.params, None).await?.read(db::zone::from_row)?;
    Ok(page.map(with_links))
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteZone) -> Result<()> {
    let deleted = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let zone = db::zone::get(tx.conn(), message.id).await?;
            let zone = zone.ok_or_else(|| Error::not_found("zone", message.id))?;
            let deleted = db::zone::delete(tx, zone.id).await;
            deleted.map_err(|e| still_used(e, "the zone has clusters: delete them first"))?;
            announce(tx, zone.id, "deleted", None, &json!({ "name": zone.name }), now)
        })
    });
    deleted.await
}

fn with_links(mut zone: Zone) -> Zone {
    let path = format!("/v1/zones/{}", zone.id);
    zone.links.insert("self".into(), Link::new("GET", path.as_str()));
    zone.links.insert("delete".into(), Link::new("DELETE", path));
    zone
}
