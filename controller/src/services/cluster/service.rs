//! Handlers of the cluster service.

use serde_json::json;
use shared::api::Link;
use shared::api::cluster::Cluster;
use shared::api::page::Page;
use shared::{Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::cluster::{CreateCluster, DeleteCluster, GetCluster, ListClusters};
use crate::services::{Context, announce, check_text, same_or_conflict, still_used, unknown_reference};
use crate::settings::definition;

pub(super) async fn create(context: Context, cx: Cx, message: CreateCluster) -> Result<Cluster> {
    let body = message.body;
    check_text("description", &body.description, 1000)?;
    check_ratio("cpu_overcommit", body.cpu_overcommit, "placement.cpu_overcommit")?;
    check_ratio("memory_overcommit", body.memory_overcommit, "placement.memory_overcommit")?;
    let settings = context.deps.settings.clone();
    let cluster = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let existing = db::cluster::get(tx.conn(), message.id).await?;
            // The defaults may have changed since the first request.
            let ratio = |given: Option<f64>, had: fn(&Cluster) -> f64, key| {
                given.or_else(|| existing.as_ref().map(had)).unwrap_or_else(|| settings.number(key))
            };
            let cluster = Cluster {
                id: message.id,
                name: body.name,
                zone_id: body.zone_id,
                description: body.description,
                cpu_overcommit: ratio(body.cpu_overcommit, |c| c.cpu_overcommit, "placement.cpu_overcommit"),
                memory_overcommit: ratio(
                    body.memory_overcommit,
                    |c| c.memory_overcommit,
                    "placement.memory_overcommit",
                ),
                created_at: existing.as_ref().map_or(now, |c| c.created_at),
                links: Default::default(),
            };
            if let Some(existing) = existing {
                same_or_conflict("cluster", &existing, &cluster)?;
                return Ok(existing);
            }
            let inserted = db::cluster::insert(tx, &cluster).await;
            inserted.map_err(|e| unknown_reference(e, "zone_id", "zone"))?;
            announce(tx, cluster.id, "created", None, &json!({ "name": cluster.name }), now)?;
            Ok(cluster)
        })
    });
    Ok(with_links(cluster.await?))
}

/// Refuses a ratio that the setting with its default would refuse.
fn check_ratio(field: &str, given: Option<f64>, key: &str) -> Result<()> {
    match (given, definition(key)?.range) {
        (Some(ratio), Some((min, max))) if !(min..=max).contains(&ratio) => {
            Err(Error::invalid(field, format!("must be {min} to {max}")))
        }
        _ => Ok(()),
    }
}

pub(super) async fn get(context: Context, _: Cx, message: GetCluster) -> Result<Cluster> {
    let mut conn = context.deps.db.read().await?;
    let cluster = db::cluster::get(&mut conn, message.id).await?;
    cluster.map(with_links).ok_or_else(|| Error::not_found("cluster", message.id))
}

pub(super) async fn list(context: Context, _: Cx, message: ListClusters) -> Result<Page<Cluster>> {
    let page = context.deps.db.page(&db::cluster::LIST, message.params, None).await?;
    Ok(page.read(db::cluster::from_row)?.map(with_links))
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteCluster) -> Result<()> {
    let deleted = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let cluster = db::cluster::get(tx.conn(), message.id).await?;
            let cluster = cluster.ok_or_else(|| Error::not_found("cluster", message.id))?;
            let deleted = db::cluster::delete(tx, cluster.id).await;
            deleted.map_err(|e| still_used(e, "the cluster has hosts, storages or networks: delete them first"))?;
            announce(tx, cluster.id, "deleted", None, &json!({ "name": cluster.name }), now)
        })
    });
    deleted.await
}

fn with_links(mut cluster: Cluster) -> Cluster {
    let path = format!("/v1/clusters/{}", cluster.id);
    cluster.links.insert("self".into(), Link::new("GET", path.as_str()));
    cluster.links.insert("delete".into(), Link::new("DELETE", path));
    cluster.links.insert("zone".into(), Link::new("GET", format!("/v1/zones/{}", cluster.zone_id)));
    cluster
}
