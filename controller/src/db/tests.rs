//! The database as such: group commit, isolation of failed writes, wake-ups.

use shared::Code;

use super::*;

async fn open() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&Db::sqlite_url(dir.path()), &TaskTracker::new()).await.unwrap();
    (dir, db)
}

async fn value(db: &Db, name: &'static str) -> Option<i64> {
    let mut conn = db.read().await.unwrap();
    let found = query("SELECT value FROM counter WHERE name = $1").bind(name).fetch_optional(&mut conn).await.unwrap();
    found.map(|row| row.int("value").unwrap())
}

#[tokio::test]
async fn a_failed_write_leaves_nothing_and_its_neighbours_stay() {
    let (_dir, db) = open().await;
    let writes = (0..200_i64).map(|n| {
        db.write(move |tx| {
            async move {
                query("INSERT INTO counter (name, value) VALUES ($1, $2)")
                    .bind(format!("n{n}"))
                    .bind(n)
                    .execute(tx.conn())
                    .await?;
                if n % 2 == 1 { Err(shared::Error::invalid("n", "is odd").into()) } else { Ok(n) }
            }
            .boxed()
        })
    });
    let results = futures_util::future::join_all(writes).await;
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result.is_ok(), n % 2 == 0);
    }
    assert_eq!((value(&db, "n10").await, value(&db, "n11").await), (Some(10), None));
}

#[tokio::test]
async fn a_panic_in_a_write_is_an_error_of_that_write() {
    let (_dir, db) = open().await;
    let result = db.write(|_| async move { if true { panic!("a defect") } else { Ok(()) } }.boxed()).await;
    assert!(matches!(result, Err(Error::Refused(e)) if e.code == Code::Internal));
    assert!(db.write(|_| async move { Ok(()) }.boxed()).await.is_ok());
}

#[tokio::test]
async fn a_reader_cannot_write() {
    let (_dir, db) = open().await;
    let mut conn = db.read().await.unwrap();
    assert!(query("DELETE FROM counter").execute(&mut conn).await.is_err());
}

async fn write(db: &Db, sql: &'static str) {
    let written = db.write(move |tx| {
        async move {
            query(sql).execute(tx.conn()).await?;
            Ok(())
        }
        .boxed()
    });
    written.await.unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let (dir, db) = open().await;
    write(&db, "UPDATE counter SET value = 7 WHERE name = 'generation'").await;
    db.close().await;
    let db = Db::open(&Db::sqlite_url(dir.path()), &TaskTracker::new()).await.unwrap();
    assert_eq!(value(&db, "generation").await, Some(7));
}

#[tokio::test]
async fn a_version_before_starts_on_a_newer_schema() {
    let (dir, db) = open().await;
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
               SELECT 9999, 'of tomorrow', success, checksum, 1 FROM _sqlx_migrations LIMIT 1";
    write(&db, sql).await;
    db.close().await;
    let db = Db::open(&Db::sqlite_url(dir.path()), &TaskTracker::new()).await.unwrap();
    assert!(value(&db, "generation").await.is_some());
}

#[tokio::test]
async fn the_databases_clock_is_asked() {
    for db in testing::dbs().await {
        // Both are on this machine.
        let before = Timestamp::now().plus_ms(-60_000);
        let told = db.told_at().await.unwrap();
        assert!(told > before && told < before.plus_ms(3_600_000), "{told}");
    }
}
