//! Handlers of the zone service.

use shared::api::Link;
use shared::api::page::Page;
use shared::api::zone::Zone;
use shared::{Code, Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::zone::{CreateZone, DeleteZone, GetZone, ListZones};
use crate::services::{Context, check_text, same_or_conflict};

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
            Ok(zone)
        })
    });
    Ok(with_links(zone.await?))
}

pub(super) async fn get(context: Context, message: GetZone) -> Result<Zone> {
    let mut conn = context.deps.db.read().await?;
    let zone = db::zone::get(&mut conn, message.id).await?;
    zone.map(with_links).ok_or_else(|| Error::not_found("zone", message.id))
}

pub(super) async fn list(context: Context, message: ListZones) -> Result<Page<Zone>> {
    let mut conn = context.deps.db.read().await?;
    let page = db::page::list(&mut conn, &db::zone::LIST, &message.params, None).await?.read(db::zone::from_row)?;
    Ok(page.map(with_links))
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteZone) -> Result<()> {
    let deleted = context.mutate(&cx, move |tx, _| {
        Box::pin(async move {
            match db::zone::delete(tx, message.id).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(Error::not_found("zone", message.id).into()),
                Err(error) if error.is_foreign_key_violation() => {
                    Err(Error::new(Code::InUse, "the zone has clusters: delete them first").into())
                }
                Err(error) => Err(error),
            }
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
