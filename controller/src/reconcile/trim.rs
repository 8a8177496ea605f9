//! Forgets what was kept long enough: events, ended jobs, idempotency keys, join tokens.

use shared::Result;

use crate::db;
use crate::services::Context;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// Most rows of a kind that one run removes: it must not hold the writer up.
const BATCH: u32 = 5000;

/// Changes of the ring that are kept.
const RING_CHANGES: u32 = 1000;

pub(super) async fn run(context: Context) -> Result<()> {
    let now = context.deps.clock.now();
    let days = |key| i64::try_from(context.deps.settings.integer(key)).unwrap_or(i64::MAX).saturating_mul(DAY_MS);
    let (events, jobs) = (now.plus_ms(-days("event.keep_days")), now.plus_ms(-days("job.keep_days")));
    let trimmed = context.deps.db.write(move |tx| {
        Box::pin(async move {
            db::event::trim(tx, events, BATCH).await?;
            db::job::trim(tx, jobs, BATCH).await?;
            // A client that repeats a request after a day has forgotten it itself.
            db::idempotency::trim(tx, now.plus_ms(-DAY_MS)).await?;
            db::join_token::trim(tx, now.plus_ms(-DAY_MS)).await?;
            db::controller::trim_changes(tx, RING_CHANGES).await?;
            Ok(())
        })
    });
    Ok(trimmed.await?)
}
