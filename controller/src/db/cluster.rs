//! Rows of clusters.
//!
//! Overcommit ratios are decimals in TEXT columns: both databases give them back exactly as written.

use shared::Error as Fault;
use shared::api::cluster::Cluster;
use shared::id::ClusterId;

use super::filter::Field;
use super::page::ListSpec;
use super::row::name_taken;
use super::{Conn, Result, Row, Tx, query};

/// Lists of clusters.
pub const LIST: ListSpec = ListSpec {
    columns: "cluster.*",
    from: "cluster",
    only: None,
    fields: &[
        Field::id("id", "cluster.id").sortable(),
        Field::text("name", "cluster.name").sortable(),
        Field::id("zone_id", "cluster.zone_id"),
        Field::text("zone.name", "zone.name").through("zone", "zone.id", "cluster.zone_id"),
        Field::text("description", "cluster.description"),
        Field::time("created_at", "cluster.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: None,
};

/// Adds a cluster; `name_taken` when the name is. A foreign key stands in the way when there is no
/// such zone.
pub async fn insert(tx: &mut Tx, cluster: &Cluster) -> Result<()> {
    let done = query(
        "INSERT INTO cluster (id, name, zone_id, description, cpu_overcommit, memory_overcommit, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(cluster.id.to_string())
    .bind(cluster.name.to_string())
    .bind(cluster.zone_id.to_string())
    .bind(cluster.description.clone())
    .bind(cluster.cpu_overcommit.to_string())
    .bind(cluster.memory_overcommit.to_string())
    .bind(cluster.created_at.ms())
    .execute(tx.conn())
    .await;
    name_taken(done, "cluster", &cluster.name)
}

/// One cluster.
pub async fn get(conn: &mut Conn, id: ClusterId) -> Result<Option<Cluster>> {
    let row = query("SELECT * FROM cluster WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// How many clusters a refusal names.
const NAMED: usize = 5;

/// The cluster that a request means: the one it names, or the only one there is. A refusal names the
/// field `cluster_id` and the choices.
pub async fn named_or_only(conn: &mut Conn, wanted: Option<ClusterId>) -> Result<ClusterId> {
    if let Some(id) = wanted {
        return match get(conn, id).await? {
            Some(_) => Ok(id),
            None => Err(unknown(id)),
        };
    }
    let rows = query("SELECT * FROM cluster ORDER BY name LIMIT $1").bind((NAMED + 1) as i64).fetch_all(conn).await?;
    let clusters: Vec<Cluster> = rows.iter().map(from_row).collect::<Result<_>>()?;
    let text = match clusters.as_slice() {
        [only] => return Ok(only.id),
        [] => "there is no cluster yet: make one with POST /v1/clusters".to_string(),
        some => {
            let names: Vec<_> = some.iter().take(NAMED).map(|c| format!("{} ({})", c.name, c.id)).collect();
            let more = if some.len() > NAMED { " or another one" } else { "" };
            format!("there are several clusters: give the id of {}{more}", names.join(", "))
        }
    };
    Err(Fault::invalid("cluster_id", text).into())
}

/// Holds the cluster until the end of the transaction, so that what must be unique among what it holds
/// is checked by one transaction at a time. A refusal names the field `cluster_id`.
pub async fn lock(tx: &mut Tx, id: ClusterId) -> Result<()> {
    let rows = query("UPDATE cluster SET id = id WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    if rows == 1 { Ok(()) } else { Err(unknown(id)) }
}

fn unknown(id: ClusterId) -> super::Error {
    Fault::invalid("cluster_id", format!("there is no cluster {id}: GET /v1/clusters lists them")).into()
}

/// Removes a cluster; false when there is none. A foreign key stands in the way while it has hosts,
/// storages or networks.
pub async fn delete(tx: &mut Tx, id: ClusterId) -> Result<bool> {
    let rows = query("DELETE FROM cluster WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// Reads a cluster, without links.
pub fn from_row(row: &Row) -> Result<Cluster> {
    Ok(Cluster {
        id: row.parse("id")?,
        name: row.parse("name")?,
        zone_id: row.parse("zone_id")?,
        description: row.text("description")?,
        cpu_overcommit: row.parse("cpu_overcommit")?,
        memory_overcommit: row.parse("memory_overcommit")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use shared::Code;

    use super::*;
    use crate::db::testing::{Seed, dbs};

    #[tokio::test]
    async fn the_only_cluster_is_meant_and_several_are_named() {
        for db in dbs().await {
            let mut conn = db.read().await.unwrap();
            let none = named_or_only(&mut conn, None).await.unwrap_err().to_string();
            assert!(none.contains("POST /v1/clusters"), "{none}");
            let seed = Seed::planted(&db).await;
            assert_eq!(named_or_only(&mut conn, None).await.unwrap(), seed.cluster.id);
            let stranger = named_or_only(&mut conn, Some(ClusterId::new())).await.unwrap_err();
            assert!(matches!(stranger, super::super::Error::Refused(e) if e.fields[0].field == "cluster_id"));
            let second = Cluster { id: ClusterId::new(), name: "c2".parse().unwrap(), ..seed.cluster.clone() };
            let added = second.clone();
            db.write(move |tx| async move { insert(tx, &added).await }.boxed()).await.unwrap();
            let several = named_or_only(&mut conn, None).await.unwrap_err().to_string();
            assert!(several.contains("c1") && several.contains(&second.id.to_string()), "{several}");
            assert_eq!(get(&mut conn, second.id).await.unwrap(), Some(second), "ratios read back exactly");
        }
    }

    #[tokio::test]
    async fn what_a_key_forbids_is_told_apart() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let id = seed.cluster.id;
            let used = db.write(move |tx| delete(tx, id).boxed()).await.unwrap_err();
            assert!(used.is_foreign_key_violation());
            let insert_another = |change: fn(&mut Cluster)| {
                let mut cluster = Cluster { id: ClusterId::new(), name: "c2".parse().unwrap(), ..seed.cluster.clone() };
                change(&mut cluster);
                db.write(move |tx| async move { insert(tx, &cluster).await }.boxed())
            };
            let taken = insert_another(|c| c.name = "c1".parse().unwrap()).await.unwrap_err();
            assert!(matches!(taken, super::super::Error::Refused(e) if e.code == Code::NameTaken));
            let nowhere = insert_another(|c| c.zone_id = Default::default()).await.unwrap_err();
            assert!(nowhere.is_foreign_key_violation());
            let locked = db.write(|tx| lock(tx, ClusterId::new()).boxed()).await.unwrap_err();
            assert!(matches!(locked, super::super::Error::Refused(e) if e.code == Code::InvalidRequest));
        }
    }
}
