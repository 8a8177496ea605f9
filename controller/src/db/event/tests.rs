//! Cursors: nobody who follows them misses an event, whoever commits when.

use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use shared::Error;
use shared::id::VmId;

use super::*;
use crate::db::testing::dbs;

fn event(n: u64) -> Appended {
    Appended {
        path: format!("/test/{n}"),
        resource_kind: "vm".into(),
        resource_id: VmId::new().to_string(),
        account_id: None,
        content: json!({"n": n}).to_string(),
        at: 0,
    }
}

async fn append(db: &Db, event: Appended) {
    let written = db.write(move |tx| {
        async move {
            tx.events.push(event);
            Ok(())
        }
        .boxed()
    });
    written.await.unwrap();
}

async fn numbers(conn: &mut Conn, after: i64, settled: i64) -> Vec<u64> {
    let events = between(conn, (after, settled), 1000, None).await.unwrap();
    events.iter().map(|event| event.content["n"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn what_a_running_transaction_may_still_commit_is_waited_for() {
    for test in dbs().await {
        if test.dialect() == Dialect::Sqlite {
            continue; // It has one writer.
        }
        let dialect = test.dialect();
        let (mut slow, mut reader) = (Conn::connect(&test.url).await.unwrap(), test.read().await.unwrap());
        let mut first = 1;
        for end in ["COMMIT", "ROLLBACK"] {
            let before = cursors(&mut reader, dialect).await.unwrap();
            assert_eq!(before.newest, before.settled);
            query("BEGIN").execute(&mut slow).await.unwrap();
            write(&mut slow, dialect, &mut vec![event(first), event(first + 1), event(first + 2)]).await.unwrap();
            append(&test, event(first + 3)).await;
            let during = cursors(&mut reader, dialect).await.unwrap();
            assert_eq!(during, Cursors { newest: before.newest + 4, settled: before.settled });
            assert!(numbers(&mut reader, before.settled, during.settled).await.is_empty());
            let listed = list(&test, ListParams::default(), None).await.unwrap();
            assert!(listed.items.iter().all(|event| event.cursor <= before.settled), "{listed:?}");
            let newest = ListParams { sort: Some("-cursor".into()), ..ListParams::default() };
            let newest = list(&test, newest, None).await.unwrap().items;
            assert_eq!(newest.first().map(|event| event.cursor), listed.items.last().map(|event| event.cursor));
            query(end).execute(&mut slow).await.unwrap();
            let after = cursors(&mut reader, dialect).await.unwrap();
            assert_eq!(after, Cursors { newest: during.newest, settled: during.newest });
            let all: Vec<_> = (first..first + 4).filter(|n| end == "COMMIT" || *n == first + 3).collect();
            assert_eq!(numbers(&mut reader, before.settled, after.settled).await, all, "{end}");
            first += 4;
        }
    }
}

#[tokio::test]
async fn who_follows_sees_each_event_once_and_those_of_one_writer_in_order() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 40;
    for test in dbs().await {
        let writing = futures_util::future::join_all((0..WRITERS).map(|writer| {
            let db = &test.db;
            async move {
                for n in 0..EACH {
                    let number = writer * EACH + n;
                    // Several in one transaction, and some that come to nothing.
                    let written = db.write(move |tx| {
                        async move {
                            tx.events.extend((0..=number % 3).map(|_| event(number)));
                            if number % 7 == 3 { Err(Error::invalid("n", "comes to nothing").into()) } else { Ok(()) }
                        }
                        .boxed()
                    });
                    assert_eq!(written.await.is_err(), number % 7 == 3);
                }
            }
        }));
        let wanted: Vec<u64> = (0..WRITERS * EACH)
            .filter(|number| number % 7 != 3)
            .flat_map(|number| std::iter::repeat_n(number, (number % 3 + 1) as usize))
            .collect();
        let following = async {
            let (mut reader, mut seen, mut after) = (test.read().await.unwrap(), Vec::new(), 0);
            while seen.len() < wanted.len() {
                let settled = cursors(&mut reader, test.dialect()).await.unwrap().settled;
                seen.extend(numbers(&mut reader, after, settled).await);
                after = after.max(settled);
                tokio::task::yield_now().await;
            }
            seen
        };
        let (_, seen) = tokio::join!(writing, tokio::time::timeout(Duration::from_secs(120), following));
        let mut seen = seen.expect("an event was missed");
        for writer in 0..WRITERS {
            assert!(seen.iter().filter(|number| *number / EACH == writer).is_sorted());
        }
        seen.sort_unstable();
        assert_eq!(seen, wanted);
    }
}

#[tokio::test]
async fn cursors_go_on_where_those_of_an_earlier_version_ended() {
    for test in dbs().await {
        let earlier = match test.dialect() {
            Dialect::Sqlite => vec!["UPDATE counter SET value = 1000 WHERE name = 'event_cursor'"],
            Dialect::Postgres => vec![
                "INSERT INTO counter (name, value) VALUES ('event_cursor', 1000)",
                "DROP SEQUENCE event_cursor",
                "DELETE FROM _sqlx_migrations WHERE version = 9",
            ],
        };
        let back = test.write(move |tx| {
            async move {
                for sql in earlier {
                    query(sql).execute(tx.conn()).await?;
                }
                Ok(())
            }
            .boxed()
        });
        back.await.unwrap();
        let again = Db::open(&test.url, &tokio_util::task::TaskTracker::new()).await.unwrap();
        append(&again, event(1)).await;
        let cursors = cursors(&mut again.read().await.unwrap(), again.dialect()).await.unwrap();
        assert_eq!(cursors, Cursors { newest: 1001, settled: 1001 });
        again.close().await;
    }
}
