//! Rows of storages and of what each host has of them.
//!
//! `reserved` is what the volumes of a host may grow to; it is checked and raised by one statement, so
//! two callers cannot both have the last bytes. Of a shared storage it is kept once, in the storage's own
//! row.

use std::collections::HashMap;

use shared::api::storage::{Storage, StorageCapacity, StorageHost, StorageKind};
use shared::id::{ClusterId, HostId, StorageId};
use shared::units::Bytes;
use shared::wire::host::StorageReport;

use super::filter::Field;
use super::gather::Found;
use super::page::ListSpec;
use super::row::{found_in, name_taken, rows_in, word};
use super::{Conn, Result, Row, Tx, query};
use crate::agent_client::HostRef;

/// Lists of storages.
pub const LIST: ListSpec = ListSpec {
    columns: "storage.*",
    from: "storage",
    only: None,
    fields: &[
        Field::id("id", "storage.id").sortable(),
        Field::text("name", "storage.name").sortable(),
        Field::text("kind", "storage.kind"),
        Field::id("cluster_id", "storage.cluster_id"),
        Field::text("cluster.name", "cluster.name").through("cluster", "cluster.id", "storage.cluster_id"),
        Field::text("path", "storage.path"),
        Field::id("hosts.host_id", "storage_host.host_id").through(
            "storage_host",
            "storage_host.storage_id",
            "storage.id",
        ),
        Field::bytes("hosts.available", "storage_host.available").through(
            "storage_host",
            "storage_host.storage_id",
            "storage.id",
        ),
        Field::time("created_at", "storage.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: None,
};

/// Adds a storage; `name_taken` when the name is. What hosts have of it is reported later.
pub async fn insert(tx: &mut Tx, storage: &Storage) -> Result<()> {
    let done =
        query("INSERT INTO storage (id, name, kind, cluster_id, path, created_at) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(storage.id.to_string())
            .bind(storage.name.to_string())
            .bind(word(&storage.kind))
            .bind(storage.cluster_id.to_string())
            .bind(storage.path.clone())
            .bind(storage.created_at.ms())
            .execute(tx.conn())
            .await;
    name_taken(done, "storage", &storage.name)
}

/// One storage, with what each host has of it.
pub async fn get(conn: &mut Conn, id: StorageId) -> Result<Option<Storage>> {
    let Some(mut storage) = without_hosts(conn, id).await? else { return Ok(None) };
    fill_hosts(conn, std::slice::from_mut(&mut storage)).await?;
    Ok(Some(storage))
}

/// One storage, without what each host has of it: there may be very many hosts.
pub async fn without_hosts(conn: &mut Conn, id: StorageId) -> Result<Option<Storage>> {
    let row = query("SELECT * FROM storage WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// Some storages, without what each host has of them.
pub(super) async fn some(conn: &mut Conn, ids: &[StorageId]) -> Result<Found<StorageId, Storage>> {
    found_in(conn, "SELECT * FROM storage WHERE id", ids, from_row).await
}

/// The storages of a cluster by name, without what each host has of them.
pub async fn of_cluster(conn: &mut Conn, cluster: ClusterId) -> Result<Vec<Storage>> {
    let rows = query("SELECT * FROM storage WHERE cluster_id = $1 ORDER BY name")
        .bind(cluster.to_string())
        .fetch_all(conn)
        .await?;
    rows.iter().map(from_row).collect()
}

/// Adds to some storages, at most a page of them, what each host has of them.
pub async fn fill_hosts(conn: &mut Conn, storages: &mut [Storage]) -> Result<()> {
    if storages.is_empty() {
        return Ok(());
    }
    let mut hosts: HashMap<StorageId, Vec<StorageHost>> = HashMap::with_capacity(storages.len());
    let ids = storages.iter().map(|storage| storage.id);
    for row in rows_in(conn, "SELECT * FROM storage_host WHERE storage_id", ids, "ORDER BY host_id").await? {
        hosts.entry(row.parse("storage_id")?).or_default().push(host_from_row(&row)?);
    }
    for storage in storages {
        storage.hosts = hosts.remove(&storage.id).unwrap_or_default();
    }
    Ok(())
}

/// What one host has of a storage; `None` until it has reported.
pub async fn of_host(conn: &mut Conn, id: StorageId, host: HostId) -> Result<Option<StorageHost>> {
    let row = query("SELECT * FROM storage_host WHERE storage_id = $1 AND host_id = $2")
        .bind(id.to_string())
        .bind(host.to_string())
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(host_from_row).transpose()
}

/// No disk is larger: keeps the arithmetic of [`reserve`] within 64 bits whatever a host says.
const MOST: Bytes = Bytes(1 << 56);

/// Writes down what a host said of its file system, or why it cannot use it.
pub async fn report(tx: &mut Tx, host: HostId, report: &StorageReport) -> Result<()> {
    tx.touch_host(host);
    let (total, available) = (report.total.min(MOST).as_i64(), report.available.min(MOST).as_i64());
    query(
        "INSERT INTO storage_host (storage_id, host_id, total, available, reserved, error)
         VALUES ($1, $2, $3, $4, 0, $5)
         ON CONFLICT (storage_id, host_id) DO UPDATE
         SET total = excluded.total, available = excluded.available, error = excluded.error",
    )
    .bind(report.storage_id.to_string())
    .bind(host.to_string())
    .bind(total)
    .bind(available)
    .bind(report.error.clone())
    .execute(tx.conn())
    .await?;
    if report.error.is_none() {
        query("UPDATE storage SET total = $2, available = $3 WHERE id = $1 AND kind = 'shared'")
            .bind(report.storage_id.to_string())
            .bind(total)
            .bind(available)
            .execute(tx.conn())
            .await?;
    }
    Ok(())
}

/// A ratio in thousandths, so that the arithmetic is that of whole numbers on both databases.
pub(super) fn permille(overcommit: f64) -> i64 {
    (overcommit * 1000.0).round() as i64
}

/// Promises `size` bytes of a host's share, or of a shared storage that the host can use, to a volume. False
/// when fewer are left of `total × overcommit` (the setting `placement.storage_overcommit`), or when the host
/// has not reported.
pub async fn reserve(tx: &mut Tx, id: StorageId, host: HostId, size: Bytes, overcommit: f64) -> Result<bool> {
    tx.touch_host(host);
    let rows = query(
        "UPDATE storage_host SET reserved = reserved + $3
         WHERE storage_id = $1 AND host_id = $2 AND $3 <= total / 1000 * $4 - reserved AND error IS NULL
             AND EXISTS (SELECT 1 FROM storage s WHERE s.id = storage_host.storage_id AND s.kind = 'local')",
    )
    .bind(id.to_string())
    .bind(host.to_string())
    .bind(size.as_i64())
    .bind(permille(overcommit))
    .execute(tx.conn())
    .await?;
    if rows == 1 {
        return Ok(true);
    }
    let rows = query(
        "UPDATE storage SET reserved = reserved + $3
         WHERE id = $1 AND kind = 'shared' AND $3 <= total / 1000 * $4 - reserved
             AND EXISTS (SELECT 1 FROM storage_host h WHERE h.storage_id = storage.id AND h.host_id = $2 AND h.error IS NULL)",
    )
    .bind(id.to_string())
    .bind(host.to_string())
    .bind(size.as_i64())
    .bind(permille(overcommit))
    .execute(tx.conn())
    .await?;
    Ok(rows == 1)
}

/// Gives back what [`reserve`] promised; in the transaction that forgets the promise, so that it is
/// given back once.
pub async fn release(tx: &mut Tx, id: StorageId, host: HostId, size: Bytes) -> Result<()> {
    tx.touch_host(host);
    let shared = query("UPDATE storage SET reserved = reserved - $2 WHERE id = $1 AND kind = 'shared'")
        .bind(id.to_string())
        .bind(size.as_i64())
        .execute(tx.conn())
        .await?;
    if shared == 0 {
        query("UPDATE storage_host SET reserved = reserved - $3 WHERE storage_id = $1 AND host_id = $2")
            .bind(id.to_string())
            .bind(host.to_string())
            .bind(size.as_i64())
            .execute(tx.conn())
            .await?;
    }
    Ok(())
}

/// The shared storages, each with a host that answers and can use it.
pub async fn shared_with_host(conn: &mut Conn) -> Result<Vec<(Storage, HostRef)>> {
    let rows = query(
        "SELECT storage.*, host.id AS host_id, host.address AS host_address FROM storage
         JOIN storage_host h ON h.storage_id = storage.id AND h.error IS NULL JOIN host ON host.id = h.host_id
         WHERE storage.kind = 'shared' AND host.connection = 'connected' ORDER BY storage.id, host.id",
    )
    .fetch_all(conn)
    .await?;
    let mut found: Vec<(Storage, HostRef)> = Vec::new();
    for row in &rows {
        let storage = from_row(row)?;
        if found.last().is_none_or(|(last, _)| last.id != storage.id) {
            found.push((storage, HostRef { id: row.parse("host_id")?, address: row.text("host_address")? }));
        }
    }
    Ok(found)
}

/// Removes a storage; false when there is none. A foreign key stands in the way while it keeps volumes.
pub async fn delete(tx: &mut Tx, id: StorageId) -> Result<bool> {
    let hosts = query("DELETE FROM storage_host WHERE storage_id = $1 RETURNING host_id")
        .bind(id.to_string())
        .fetch_all(tx.conn())
        .await?;
    for host in &hosts {
        tx.touch_host(host.parse("host_id")?);
    }
    let rows = query("DELETE FROM storage WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// Reads a storage, without links and without what each host has of it.
pub fn from_row(row: &Row) -> Result<Storage> {
    Ok(Storage {
        id: row.parse("id")?,
        name: row.parse("name")?,
        kind: row.word("kind")?,
        cluster_id: row.parse("cluster_id")?,
        path: row.text("path")?,
        hosts: Vec::new(),
        capacity: match row.word("kind")? {
            StorageKind::Local => None,
            StorageKind::Shared => Some(StorageCapacity {
                total: row.bytes("total")?,
                available: row.bytes("available")?,
                reserved: row.bytes("reserved")?,
            }),
        },
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}

fn host_from_row(row: &Row) -> Result<StorageHost> {
    Ok(StorageHost {
        host_id: row.parse("host_id")?,
        total: row.bytes("total")?,
        available: row.bytes("available")?,
        reserved: row.bytes("reserved")?,
        error: row.opt_text("error")?,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::db::testing::{Seed, dbs};

    #[tokio::test]
    async fn exactly_what_fits_is_reserved_however_many_ask() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let (id, host) = (seed.storage.id, seed.host.id);
            let reserve_gib =
                |n: u64| db.write(move |tx| async move { reserve(tx, id, host, Bytes::gib(n), 1.5).await }.boxed());
            assert!(!reserve_gib(0).await.unwrap(), "nothing is known of the host yet");
            let say = |total, available| {
                let said = StorageReport { storage_id: id, total, available, error: None };
                db.write(move |tx| async move { report(tx, host, &said).await }.boxed())
            };
            say(Bytes::gib(10), Bytes::gib(9)).await.unwrap();
            // 10 GiB × 1.5 hold seven volumes of 2 GiB.
            let results = futures_util::future::join_all((0..20).map(|_| reserve_gib(2))).await;
            assert_eq!(results.into_iter().filter(|r| *r.as_ref().unwrap()).count(), 7);
            db.write(move |tx| release(tx, id, host, Bytes::gib(2)).boxed()).await.unwrap();
            assert!(reserve_gib(2).await.unwrap());
            // A report changes what the host has and not what is promised.
            say(Bytes(u64::MAX), Bytes::gib(1)).await.unwrap();
            assert!(reserve_gib(1).await.unwrap());
            let mut conn = db.read().await.unwrap();
            let share = of_host(&mut conn, id, host).await.unwrap().unwrap();
            assert_eq!((share.available, share.reserved), (Bytes::gib(1), Bytes::gib(15)));
            let storage = get(&mut conn, id).await.unwrap().unwrap();
            assert_eq!(storage, Storage { hosts: vec![share], ..seed.storage.clone() });
            assert_eq!(of_cluster(&mut conn, seed.cluster.id).await.unwrap(), [seed.storage]);
        }
    }

    #[tokio::test]
    async fn a_shared_storage_is_counted_once_and_only_where_it_can_be_used() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let first = seed.host.id;
            let mut other = seed.host.clone();
            (other.id, other.name) = (HostId::new(), "h2".parse().unwrap());
            let second = other.id;
            let mut nas = Storage { id: StorageId::new(), name: "nas".parse().unwrap(), ..seed.storage.clone() };
            (nas.kind, nas.path, nas.capacity) = (StorageKind::Shared, "/mnt/nas".into(), Some(Default::default()));
            let (id, row) = (nas.id, nas.clone());
            db.write(move |tx| {
                async move {
                    super::super::host::join(tx, &other).await?;
                    insert(tx, &row).await
                }
                .boxed()
            })
            .await
            .unwrap();
            let say = |host, error: Option<&str>| {
                let error = error.map(str::to_string);
                let said = StorageReport { storage_id: id, total: Bytes::gib(10), available: Bytes::gib(9), error };
                db.write(move |tx| async move { report(tx, host, &said).await }.boxed())
            };
            let take =
                |host| db.write(move |tx| async move { reserve(tx, id, host, Bytes::gib(4), 1.0).await }.boxed());
            assert!(!take(first).await.unwrap(), "no host has told of it");
            say(first, None).await.unwrap();
            say(second, Some("nothing is mounted")).await.unwrap();
            assert!(!take(second).await.unwrap(), "it is not mounted there");
            assert!(take(first).await.unwrap());
            say(second, None).await.unwrap();
            assert!(take(second).await.unwrap());
            assert!(!take(first).await.unwrap(), "8 GiB of 10 are promised, whoever asks");
            db.write(move |tx| release(tx, id, first, Bytes::gib(4)).boxed()).await.unwrap();
            assert!(take(second).await.unwrap());
            say(first, Some("nothing is mounted")).await.unwrap();
            let mut conn = db.read().await.unwrap();
            let found = get(&mut conn, id).await.unwrap().unwrap();
            let reserved = found.capacity.unwrap();
            assert_eq!((reserved.total, reserved.reserved), (Bytes::gib(10), Bytes::gib(8)));
            assert!(found.hosts.iter().all(|host| host.reserved == Bytes(0)));
            let reach = shared_with_host(&mut conn).await.unwrap();
            assert_eq!(reach.iter().map(|(s, h)| (s.id, h.id)).collect::<Vec<_>>(), [(id, second)]);
        }
    }
}
