//! Forgets what was kept long enough: events, ended jobs, idempotency keys, join tokens.

use shared::Result;
use shared::time::Timestamp;

use crate::db::{self, Db};
use crate::services::Context;

const DAY_MS: f64 = 24.0 * 3600.0 * 1000.0;
/// Most rows of a kind that one write removes: others wait for it. Writes follow each other until nothing is
/// left, so that a cloud that has thousands of jobs a minute forgets as many.
const BATCH: u32 = 500;

/// Changes of the ring that are kept.
const RING_CHANGES: u32 = 1000;

pub(super) async fn run(context: Context) -> Result<()> {
    let now = context.deps.clock.now();
    let days = |count: f64| now.plus_ms(-((count * DAY_MS) as i64));
    let [events, jobs] = ["event.keep_days", "job.keep_days"].map(|key| days(context.deps.settings.number(key)));
    // A client that repeats a request after a day has forgotten it itself.
    forget(&context.deps.db, Before { events, jobs, asked: days(1.0) }).await
}

/// What is forgotten: all that is older.
#[derive(Clone, Copy)]
struct Before {
    events: Timestamp,
    jobs: Timestamp,
    asked: Timestamp,
}

async fn forget(db: &Db, before: Before) -> Result<()> {
    loop {
        let removed = db.write(move |tx| {
            Box::pin(async move {
                db::controller::trim_changes(tx, RING_CHANGES).await?;
                Ok([
                    db::event::trim(tx, before.events, BATCH).await?,
                    db::job::trim(tx, before.jobs, BATCH).await?,
                    db::idempotency::trim(tx, before.asked, BATCH).await?,
                    db::join_token::trim(tx, before.asked, BATCH).await?,
                ])
            })
        });
        if removed.await?.into_iter().all(|rows| rows < u64::from(BATCH)) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::query;
    use crate::db::testing::dbs;

    #[tokio::test]
    async fn everything_that_is_old_should_go_however_much_it_is() {
        for test in dbs().await {
            let db = &test.db;
            // Twice what one write removes, and a bit; the last ten are too young.
            let (count, young) = (i64::from(BATCH) * 2 + 30, 10);
            let planted = db.write(move |tx| {
                Box::pin(async move {
                    for n in 0..count {
                        query("INSERT INTO idempotency (account_id, key, request_hash, reply, created_at) VALUES ('a', $1, '', '{}', $2)")
                            .bind(format!("key-{n}"))
                            .bind(if n < count - young { n } else { 1_000_000 })
                            .execute(tx.conn())
                            .await?;
                    }
                    Ok(())
                })
            });
            planted.await.unwrap();
            let at = Timestamp(900_000);
            forget(db, Before { events: at, jobs: at, asked: at }).await.unwrap();
            let left = query("SELECT COUNT(*) AS n FROM idempotency").fetch_one(&mut db.read().await.unwrap()).await;
            assert_eq!(left.unwrap().int("n").unwrap(), young);
        }
    }
}
