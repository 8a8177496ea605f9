//! Handlers of the storage service.

use std::time::Duration;

use serde_json::json;
use shared::api::Link;
use shared::api::page::Page;
use shared::api::storage::{Storage, StorageCapacity, StorageKind};
use shared::{Code, Error, Result};

use crate::cx::Cx;
use crate::db;
use crate::messages::host::CompareHost;
use crate::messages::storage::{CreateStorage, DeleteStorage, GetStorage, ListStorages};
use crate::services::{Context, announce, same_or_conflict, still_used};

/// How long a host's comparison may take.
const COMPARE: Duration = Duration::from_secs(90);
/// Longest path of a storage; room is left for the names of volumes below it.
const MAX_PATH: usize = 1024;

pub(super) async fn create(context: Context, cx: Cx, message: CreateStorage) -> Result<Storage> {
    let body = message.body;
    match body.kind {
        StorageKind::Local | StorageKind::Shared => check_path(&body.path)?,
    }
    let storage = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let storage = Storage {
                id: message.id,
                name: body.name,
                kind: body.kind,
                cluster_id: body.cluster_id,
                path: body.path,
                hosts: Vec::new(),
                capacity: match body.kind {
                    StorageKind::Local => None,
                    StorageKind::Shared => Some(StorageCapacity::default()),
                },
                created_at: now,
                links: Default::default(),
            };
            if let Some(existing) = db::storage::get(tx.conn(), storage.id).await? {
                let (created_at, capacity) = (existing.created_at, existing.capacity);
                let same = Storage { created_at, capacity, hosts: existing.hosts.clone(), ..storage };
                same_or_conflict("storage", &existing, &same)?;
                return Ok(existing);
            }
            db::cluster::lock(tx, storage.cluster_id).await?;
            refuse_shared_folder(tx, &storage).await?;
            db::storage::insert(tx, &storage).await?;
            announce(tx, storage.id, "created", None, &json!({ "name": storage.name }), now)?;
            Ok(storage)
        })
    });
    let storage = storage.await?;
    // The hosts look at it now, and not with the next change there.
    let hosts = {
        let mut conn = context.deps.db.read().await?;
        db::host::connected(&mut conn, storage.cluster_id).await?
    };
    for host in hosts {
        context.bus()?.notify(&Cx::system(COMPARE), CompareHost { id: host.id });
    }
    Ok(with_links(storage))
}

/// What a storage's path may be: what reaches file systems, XML and tables is decided here.
fn check_path(path: &str) -> Result<()> {
    let refuse = |message: &str| Err(Error::invalid("path", message));
    let Some(below) = path.strip_prefix('/') else {
        return refuse("must be absolute, such as /srv/kring/ssd");
    };
    if path.len() > MAX_PATH {
        return refuse("must have at most 1024 characters");
    }
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
        return refuse("may hold only ASCII letters, digits, '/', '.', '_' and '-'");
    }
    if below.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse("must be a folder below / without \"..\", \".\", \"//\" and a \"/\" at the end");
    }
    Ok(())
}

/// Two storages of one cluster must not lie in one folder, nor one in the other: hosts would count its
/// bytes twice and find each other's volumes.
async fn refuse_shared_folder(tx: &mut db::Tx, storage: &Storage) -> db::Result<()> {
    let within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for other in db::storage::of_cluster(tx.conn(), storage.cluster_id).await? {
        if within(&storage.path, &other.path) || within(&other.path, &storage.path) {
            let text = format!("storage {} of this cluster lies in {}: choose another folder", other.name, other.path);
            return Err(Error::new(Code::InUse, text).into());
        }
    }
    Ok(())
}

pub(super) async fn get(context: Context, _: Cx, message: GetStorage) -> Result<Storage> {
    let mut conn = context.deps.db.read().await?;
    let storage = db::storage::get(&mut conn, message.id).await?;
    storage.map(with_links).ok_or_else(|| Error::not_found("storage", message.id))
}

pub(super) async fn list(context: Context, _: Cx, message: ListStorages) -> Result<Page<Storage>> {
    let page = context.deps.db.page(&db::storage::LIST, message.params, None).await?;
    let mut page = page.read(db::storage::from_row)?;
    let items = std::mem::take(&mut page.items);
    let filled = context.deps.db.list(move |conn| {
        let mut items = items.clone();
        Box::pin(async move {
            db::storage::fill_hosts(conn, &mut items).await?;
            Ok(items)
        })
    });
    page.items = filled.await?;
    Ok(page.map(with_links))
}

pub(super) async fn delete(context: Context, cx: Cx, message: DeleteStorage) -> Result<()> {
    let deleted = context.mutate(&cx, move |tx, now| {
        Box::pin(async move {
            let storage = db::storage::get(tx.conn(), message.id).await?;
            let storage = storage.ok_or_else(|| Error::not_found("storage", message.id))?;
            let deleted = db::storage::delete(tx, storage.id).await;
            deleted
                .map_err(|e| still_used(e, "the storage keeps volumes: delete them, and expunge their VMs, first"))?;
            announce(tx, storage.id, "deleted", None, &json!({ "name": storage.name }), now)
        })
    });
    deleted.await
}

fn with_links(mut storage: Storage) -> Storage {
    let path = format!("/v1/storages/{}", storage.id);
    storage.links.insert("self".into(), Link::new("GET", path.as_str()));
    storage.links.insert("delete".into(), Link::new("DELETE", path));
    storage.links.insert("cluster".into(), Link::new("GET", format!("/v1/clusters/{}", storage.cluster_id)));
    storage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_normal_absolute_path_is_taken() {
        for good in ["/srv", "/var/lib/kring/volumes", "/mnt/disk-1/a_b.c"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        let long = format!("/{}", "a".repeat(MAX_PATH));
        for bad in [
            "",
            "/",
            "srv",
            "/srv/",
            "//srv",
            "/srv/../etc",
            "/..",
            "/a/./b",
            "/a b",
            "/a'b",
            "/ä",
            "/a\0",
            "/<a>",
            long.as_str(),
        ] {
            assert_eq!(check_path(bad).map_err(|e| e.fields[0].field.clone()), Err("path".to_string()), "{bad:?}");
        }
    }
}
