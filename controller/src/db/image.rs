//! Rows of images and of the hosts that have them in their caches.

use shared::api::image::{Image, ImageState};
use shared::id::{HostId, ImageId};
use shared::wire::image::ImageInfo;
use shared::{Code, Error as Fault};

use super::filter::Field;
use super::gather::Found;
use super::page::ListSpec;
use super::row::{found_in, json, name_taken, word};
use super::{Conn, Result, Row, Tx, query};
use crate::agent_client::HostRef;

/// Lists of images.
pub const LIST: ListSpec = ListSpec {
    columns: "image.*",
    from: "image",
    only: None,
    fields: &[
        Field::id("id", "image.id").sortable(),
        Field::text("name", "image.name").sortable(),
        Field::id("account_id", "image.account_id"),
        Field::text("state", "image.state").sortable(),
        Field::text("format", "image.format"),
        Field::text("sha256", "image.sha256"),
        Field::bytes("size", "image.size"),
        Field::bytes("virtual_size", "image.virtual_size"),
        Field::text("firmware", "image.firmware"),
        Field::time("created_at", "image.created_at"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("image.account_id"),
};

/// Adds an image; `name_taken` when the account has one of that name. Format and checksum are what
/// the content must turn out to have, when they are given.
pub async fn insert(tx: &mut Tx, image: &Image) -> Result<()> {
    let done = query(
        "INSERT INTO image (id, name, account_id, state, source, format, sha256, size, virtual_size, firmware, created_at,
             version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0)",
    )
    .bind(image.id.to_string())
    .bind(image.name.to_string())
    .bind(image.account_id.to_string())
    .bind(image.state.as_str())
    .bind(json(&image.source)?)
    .bind(image.format.map(|format| format.as_str().to_string()))
    .bind(image.sha256.clone())
    .bind(image.size.map(|size| size.as_i64()))
    .bind(image.virtual_size.map(|size| size.as_i64()))
    .bind(word(&image.firmware))
    .bind(image.created_at.ms())
    .execute(tx.conn())
    .await;
    name_taken(done, "image", &image.name)
}

/// Some images.
pub(super) async fn some(conn: &mut Conn, ids: &[ImageId]) -> Result<Found<ImageId, Image>> {
    found_in(conn, "SELECT * FROM image WHERE id", ids, from_row).await
}

/// One image.
pub async fn get(conn: &mut Conn, id: ImageId) -> Result<Option<Image>> {
    let row = query("SELECT * FROM image WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// Moves an image from one of the states `from` to `to`, and answers it as it is then. `not_found` or
/// `invalid_state` otherwise, also when somebody else was quicker.
pub async fn change(tx: &mut Tx, id: ImageId, from: &[ImageState], to: ImageState) -> Result<Image> {
    let (image, version) = for_change(tx, id, from, to).await?;
    let rows =
        query("UPDATE image SET state = $4, version = version + 1 WHERE id = $1 AND state = $2 AND version = $3")
            .bind(id.to_string())
            .bind(image.state.as_str())
            .bind(version)
            .bind(to.as_str())
            .execute(tx.conn())
            .await?;
    changed(rows, &image)?;
    Ok(Image { state: to, ..image })
}

/// Notes what an image turned out to be, and makes it ready. Noting the same twice is one change.
pub async fn set_ready(tx: &mut Tx, id: ImageId, info: &ImageInfo) -> Result<Image> {
    let (image, version) = for_change(tx, id, &[ImageState::Creating, ImageState::Ready], ImageState::Ready).await?;
    let ready = Image {
        state: ImageState::Ready,
        format: Some(info.format),
        sha256: Some(info.sha256.clone()),
        size: Some(info.size),
        virtual_size: Some(info.virtual_size),
        ..image.clone()
    };
    if image == ready {
        return Ok(ready);
    }
    if image.state == ImageState::Ready {
        let text = format!("image {} is ready with another content", image.name);
        return Err(Fault::new(Code::InvalidState, text).into());
    }
    let rows = query(
        "UPDATE image SET state = 'ready', format = $4, sha256 = $5, size = $6, virtual_size = $7, version = version + 1
         WHERE id = $1 AND state = $2 AND version = $3",
    )
    .bind(id.to_string())
    .bind(image.state.as_str())
    .bind(version)
    .bind(info.format.as_str())
    .bind(info.sha256.clone())
    .bind(info.size.as_i64())
    .bind(info.virtual_size.as_i64())
    .execute(tx.conn())
    .await?;
    changed(rows, &image)?;
    Ok(ready)
}

async fn for_change(tx: &mut Tx, id: ImageId, from: &[ImageState], to: ImageState) -> Result<(Image, i64)> {
    let row = query("SELECT * FROM image WHERE id = $1").bind(id.to_string()).fetch_optional(tx.conn()).await?;
    let Some(row) = row else {
        return Err(Fault::not_found("image", id).into());
    };
    let image = from_row(&row)?;
    if !from.contains(&image.state) || !image.state.can_become(to) {
        let text = format!("image {} is {}: it cannot become {to} now", image.name, image.state);
        return Err(Fault::new(Code::InvalidState, text).into());
    }
    Ok((image, row.int("version")?))
}

fn changed(rows: u64, image: &Image) -> Result<()> {
    if rows == 1 {
        return Ok(());
    }
    let text = format!("image {} has just been changed by another request: look at it again", image.name);
    Err(Fault::new(Code::InvalidState, text).into())
}

/// Refuses with `in_use` while a VM or a volume is based on an image.
pub async fn refuse_in_use(conn: &mut Conn, image: &Image) -> Result<()> {
    for (sql, noun) in [
        ("SELECT name FROM volume WHERE image_id = $1 LIMIT 1", "volume"),
        ("SELECT name FROM vm WHERE image_id = $1 LIMIT 1", "VM"),
    ] {
        let row = query(sql).bind(image.id.to_string()).fetch_optional(&mut *conn).await?;
        if let Some(row) = row {
            let text = format!(
                "{noun} {} is based on image {}: delete and expunge what is made from the image first",
                row.text("name")?,
                image.name
            );
            return Err(Fault::new(Code::InUse, text).into());
        }
    }
    Ok(())
}

/// Notes that a host has an image in its cache.
pub async fn add_host(tx: &mut Tx, id: ImageId, host: HostId) -> Result<()> {
    query("INSERT INTO image_host (image_id, host_id) VALUES ($1, $2) ON CONFLICT (image_id, host_id) DO NOTHING")
        .bind(id.to_string())
        .bind(host.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Notes that a host does not have an image any more.
pub async fn remove_host(tx: &mut Tx, id: ImageId, host: HostId) -> Result<()> {
    query("DELETE FROM image_host WHERE image_id = $1 AND host_id = $2")
        .bind(id.to_string())
        .bind(host.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// The hosts that have an image in their caches and answer.
pub async fn connected_hosts(conn: &mut Conn, id: ImageId) -> Result<Vec<HostRef>> {
    let rows = query(
        "SELECT host.id, host.address FROM image_host JOIN host ON host.id = image_host.host_id
         WHERE image_host.image_id = $1 AND host.connection = 'connected' ORDER BY host.id",
    )
    .bind(id.to_string())
    .fetch_all(conn)
    .await?;
    rows.iter().map(|row| Ok(HostRef { id: row.parse("id")?, address: row.text("address")? })).collect()
}

/// The images that a host has in its cache.
pub async fn of_host(conn: &mut Conn, host: HostId) -> Result<Vec<ImageId>> {
    let rows = query("SELECT image_id FROM image_host WHERE host_id = $1 ORDER BY image_id")
        .bind(host.to_string())
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| row.parse("image_id")).collect()
}

/// Removes an image and what is noted of caches; false when there is none. A foreign key stands in
/// the way while VMs or volumes are based on it.
pub async fn delete(tx: &mut Tx, id: ImageId) -> Result<bool> {
    query("DELETE FROM image_host WHERE image_id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    let rows = query("DELETE FROM image WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    Ok(rows == 1)
}

/// Reads an image, without links.
pub fn from_row(row: &Row) -> Result<Image> {
    Ok(Image {
        id: row.parse("id")?,
        name: row.parse("name")?,
        account_id: row.parse("account_id")?,
        state: row.parse("state")?,
        source: row.json("source")?,
        format: row.opt_text("format")?.map(|_| row.word("format")).transpose()?,
        sha256: row.opt_text("sha256")?,
        size: row.opt_int("size")?.map(shared::units::Bytes::from_i64),
        virtual_size: row.opt_int("virtual_size")?.map(shared::units::Bytes::from_i64),
        firmware: row.word("firmware")?,
        created_at: row.time("created_at")?,
        links: Default::default(),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use shared::api::image::DiskFormat;
    use shared::units::Bytes;

    use super::*;
    use crate::db::testing::{Seed, dbs};

    fn info() -> ImageInfo {
        let (format, size, virtual_size) = (DiskFormat::Qcow2, Bytes::mib(3), Bytes::gib(2));
        ImageInfo { format, sha256: "ab".repeat(32), size, virtual_size }
    }

    fn code<T>(result: Result<T>) -> Option<Code> {
        match result {
            Err(super::super::Error::Refused(refused)) => Some(refused.code),
            Ok(_) | Err(_) => None,
        }
    }

    #[tokio::test]
    async fn an_image_becomes_ready_once_and_keeps_what_it_is() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let id = seed.image.id;
            let set = |info: ImageInfo| db.write(move |tx| async move { set_ready(tx, id, &info).await }.boxed());
            let ready = set(info()).await.unwrap();
            assert_eq!(set(info()).await.unwrap(), ready);
            let mut conn = db.read().await.unwrap();
            assert_eq!(get(&mut conn, id).await.unwrap(), Some(ready));
            assert_eq!(code(set(ImageInfo { size: Bytes(1), ..info() }).await), Some(Code::InvalidState));
        }
    }

    #[tokio::test]
    async fn a_state_changes_only_as_the_table_says() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let change = |from: &'static [ImageState], to| {
                let id = seed.image.id;
                db.write(move |tx| async move { change(tx, id, from, to).await }.boxed())
            };
            assert_eq!(code(change(&[ImageState::Ready], ImageState::Deleting).await), Some(Code::InvalidState));
            change(&[ImageState::Creating], ImageState::Deleting).await.unwrap();
            change(&[ImageState::Deleting], ImageState::Ready).await.unwrap();
            assert_eq!(code(change(&[ImageState::Ready], ImageState::Creating).await), Some(Code::InvalidState));
        }
    }

    #[tokio::test]
    async fn caches_are_noted_once_and_go_with_the_image_and_vms_keep_it() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let (id, host) = (seed.image.id, seed.host.id);
            for _ in 0..2 {
                db.write(move |tx| add_host(tx, id, host).boxed()).await.unwrap();
            }
            let mut conn = db.read().await.unwrap();
            assert_eq!(connected_hosts(&mut conn, id).await.unwrap().len(), 1);
            assert_eq!(of_host(&mut conn, host).await.unwrap(), [id]);
            refuse_in_use(&mut conn, &seed.image).await.unwrap();
            let owner = seed.clone();
            let vm = db.write(move |tx| async move { owner.insert_vm(tx, "web").await }.boxed()).await.unwrap();
            assert_eq!(code(refuse_in_use(&mut conn, &seed.image).await), Some(Code::InUse));
            let kept = db.write(move |tx| delete(tx, id).boxed()).await;
            assert!(kept.unwrap_err().is_foreign_key_violation());
            let deleted = db.write(move |tx| {
                async move {
                    query("DELETE FROM vm WHERE id = $1").bind(vm.to_string()).execute(tx.conn()).await?;
                    delete(tx, id).await
                }
                .boxed()
            });
            assert!(deleted.await.unwrap());
            drop(conn);
            let mut conn = db.read().await.unwrap();
            assert_eq!(of_host(&mut conn, host).await.unwrap(), []);
        }
    }
}
