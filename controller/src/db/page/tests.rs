//! Lists on a real database: order, cursors, counts, scopes, related fields.

use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use shared::Code;
use tokio_util::task::TaskTracker;

use super::*;
use crate::db::testing::{ENDLESS, dbs};
use crate::db::{Db, Error, query};

const SPEC: ListSpec = ListSpec {
    columns: "image.*",
    from: "image",
    only: None,
    fields: &[
        Field::id("id", "image.id").sortable(),
        Field::text("name", "image.name").sortable(),
        Field::text("state", "image.state").sortable(),
        Field::bytes("size", "image.size"),
        Field::text("account.name", "account.name").through("account", "account.id", "image.account_id"),
    ],
    id: "id",
    default_sort: "id",
    account: Some("image.account_id"),
};

async fn filled() -> (tempfile::TempDir, Db, Vec<AccountId>) {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&Db::sqlite_url(dir.path()), &TaskTracker::new()).await.unwrap();
    let accounts = vec![AccountId::new(), AccountId::new()];
    let owners = accounts.clone();
    db.write(move |tx| {
        async move {
            for (i, account) in owners.iter().enumerate() {
                query("INSERT INTO account (id, name, kind, created_at) VALUES ($1, $2, 'normal', 0)")
                    .bind(account.to_string())
                    .bind(format!("owner-{i}"))
                    .execute(tx.conn())
                    .await?;
            }
            for n in 0..25_i64 {
                query("INSERT INTO image (id, name, account_id, state, source, size, firmware, created_at, version) VALUES ($1, $2, $3, $4, '{}', $5, 'bios', 0, 0)")
                    .bind(format!("00000000-0000-7000-8000-{n:012}"))
                    .bind(format!("Image-{n:02}"))
                    .bind(owners[(n % 5 == 0) as usize].to_string())
                    .bind(if n % 3 == 0 { "ready" } else { "creating" })
                    .bind((n % 2 == 0).then_some(n))
                    .execute(tx.conn())
                    .await?;
            }
            Ok(())
        }
        .boxed()
    })
    .await
    .unwrap();
    (dir, db, accounts)
}

async fn names(db: &Db, params: &ListParams, scope: Option<AccountId>) -> Vec<String> {
    let mut names = Vec::new();
    let mut params = params.clone();
    let mut conn = db.read().await.unwrap();
    loop {
        let page = list(&mut conn, &SPEC, &params, scope).await.unwrap();
        names.extend(page.rows.iter().map(|row| row.text("name").unwrap()));
        match page.next_cursor {
            Some(cursor) => params.cursor = Some(cursor),
            None => return names,
        }
    }
}

fn params(q: &str, sort: Option<&str>, limit: u32) -> ListParams {
    ListParams { q: Some(q.into()), sort: sort.map(str::to_string), limit: Some(limit), ..ListParams::default() }
}

#[tokio::test]
async fn pages_of_any_size_add_up_to_the_whole_in_order() {
    let (_dir, db, accounts) = filled().await;
    for sort in [None, Some("id"), Some("-id"), Some("name"), Some("-state"), Some("state")] {
        let whole = names(&db, &params("", sort, 1000), None).await;
        assert_eq!(whole.len(), 25);
        for limit in [1, 2, 7, 24, 25] {
            assert_eq!(names(&db, &params("", sort, limit), None).await, whole, "{sort:?} by {limit}");
        }
    }
    assert_eq!(names(&db, &params("", None, 2), Some(accounts[1])).await.len(), 5);
    assert_eq!(names(&db, &params("", Some("-name"), 3), None).await[0], "Image-24");
}

#[tokio::test]
async fn filters_mean_what_they_say() {
    let (_dir, db, accounts) = filled().await;
    for (q, hits) in [
        ("state = ready", 9),
        ("state != ready", 16),
        ("name like 'image-0%'", 10),
        ("name like 'IMAGE\\_0%'", 0),
        ("size is null", 12),
        ("size >= 20", 3),
        ("not size >= 20", 22),
        ("account.name = owner-1", 5),
        ("account.name != owner-1", 20),
        ("account.name = owner-1 and state = ready or name = Image-01", 3),
        ("name in (Image-01, 'Image-02', \"nobody\")", 2),
        ("name = \"' OR 1=1 --\"", 0),
    ] {
        assert_eq!(names(&db, &params(q, None, 4), None).await.len(), hits, "{q}");
    }
    assert_eq!(names(&db, &params("account.name = owner-0", None, 4), Some(accounts[1])).await.len(), 0);
}

#[tokio::test]
async fn the_count_is_of_all_that_match() {
    let (_dir, db, accounts) = filled().await;
    let mut conn = db.read().await.unwrap();
    let mut asked = ListParams { count: Some(true), ..params("state = ready", Some("name"), 4) };
    let first = list(&mut conn, &SPEC, &asked, None).await.unwrap();
    assert_eq!((first.rows.len(), first.count), (4, Some(9)));
    asked.cursor = first.next_cursor;
    assert_eq!(list(&mut conn, &SPEC, &asked, None).await.unwrap().count, Some(9));
    asked = ListParams { count: Some(true), ..ListParams::default() };
    assert_eq!(list(&mut conn, &SPEC, &asked, Some(accounts[1])).await.unwrap().count, Some(5));
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_parameter_named() {
    let (_dir, db, _) = filled().await;
    let mut conn = db.read().await.unwrap();
    let cursor = list(&mut conn, &SPEC, &params("", Some("name"), 1), None).await.unwrap().next_cursor;
    let with = |cursor: Option<&str>, sort: &str| ListParams {
        cursor: cursor.map(str::to_string),
        ..params("", Some(sort), 1)
    };
    for (asked, field) in [
        (params("", Some("size"), 1), "sort"),
        (params("", Some("nothing"), 1), "sort"),
        (params("", Some("--id"), 1), "sort"),
        (params("", None, 0), "limit"),
        (params("", None, 1001), "limit"),
        (params("nothing = 1", None, 1), "q"),
        (with(cursor.as_deref(), "-name"), "cursor"),
        (with(cursor.as_deref(), "id"), "cursor"),
        (ListParams { q: Some("state = ready".into()), ..with(cursor.as_deref(), "name") }, "cursor"),
        (with(Some("%%%"), "name"), "cursor"),
        (with(Some("e30"), "name"), "cursor"),
        (with(Some(&"A".repeat(10_000)), "name"), "cursor"),
    ] {
        let error = shared::Error::from(list(&mut conn, &SPEC, &asked, None).await.err().unwrap());
        assert_eq!((error.code, error.fields[0].field.as_str()), (Code::InvalidRequest, field), "{asked:?}");
    }
}

#[tokio::test]
async fn a_page_behind_a_cursor_is_found_by_the_index() {
    let (_dir, db, _) = filled().await;
    let mut conn = db.read().await.unwrap();
    let cursor = list(&mut conn, &SPEC, &params("", None, 1), None).await.unwrap().next_cursor;
    let asked = ListParams { cursor, ..params("", None, 1) };
    let mut sql = Plan::new(&SPEC, &asked, None).unwrap().page();
    sql.text.insert_str(0, "EXPLAIN QUERY PLAN ");
    let steps: Vec<String> =
        sql.query().fetch_all(&mut conn).await.unwrap().iter().map(|row| row.text("detail").unwrap()).collect();
    assert!(steps[0].starts_with("SEARCH image USING") && steps.len() == 1, "{steps:?}");
}

#[tokio::test]
async fn lists_that_read_little_wait_for_none_that_reads_very_much() {
    for db in dbs().await {
        let ended = Mutex::new(Vec::new());
        let endless = join_all((0..8).map(|_| async {
            let read = db.list(|conn| Box::pin(async move { query(ENDLESS).fetch_one(conn).await })).await;
            assert!(matches!(read, Err(Error::Refused(error)) if error.code == Code::DeadlineExceeded));
            ended.lock().unwrap().push("much");
        }));
        let little = async {
            db.page(&SPEC, ListParams::default(), None).await.unwrap();
            ended.lock().unwrap().push("little");
        };
        tokio::join!(endless, little);
        assert_eq!(ended.lock().unwrap().first(), Some(&"little"));
    }
}

#[tokio::test]
async fn an_owner_is_found_for_what_is_owned() {
    let (_dir, db, accounts) = filled().await;
    let image = "00000000-0000-7000-8000-000000000005".parse().unwrap();
    let nouns = ["image", "vm", "volume", "network", "job", "token", "account", "host"];
    let found = futures_util::future::try_join_all(nouns.map(|noun| db.owners.get((noun, image)))).await.unwrap();
    assert_eq!(found[0], Some(accounts[1]));
    assert!(found[1..].iter().all(Option::is_none), "{found:?}");
}
