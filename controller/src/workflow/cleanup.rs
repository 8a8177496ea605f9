//! Undoing that failed and is owed: tried until it succeeds, by the same code as the first try.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shared::{Code, Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::flow::{At, Flow, StepCx};
use crate::cx::Trace;
use crate::db::{self, cleanup::Cleanup};
use crate::deps::Deps;

/// Longest time between two tries.
const MAX_WAIT_MS: i64 = 10 * 60 * 1000;
/// Debts that are read together, and resources whose debts are paid at the same time.
const PAGE: u32 = 1000;
const AT_ONCE: usize = 64;
/// How long one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(120);

/// Tries what is due and owned here, and answers how many debts were paid. Those of one resource are paid one after
/// the other, those of others beside them, so that a host that hangs holds up what is owed to it and nothing else.
pub async fn run_due(engine: &Engine) -> Result<usize> {
    let (deps, now, mut after, mut paid) = (&engine.deps, engine.deps.clock.now(), None, 0);
    while !engine.stop.is_cancelled() {
        let due = {
            let mut conn = deps.db.read().await?;
            db::cleanup::due(&mut conn, now, after, PAGE).await?
        };
        let Some(last) = due.last() else { break };
        after = Some((last.resource_id, last.id));
        let of_resource = due.chunk_by(|a, b| a.resource_id == b.resource_id).map(<[Cleanup]>::to_vec);
        let paying = stream::iter(of_resource).map(|debts| pay_all(engine, debts)).buffer_unordered(AT_ONCE);
        paid += paying.fold(0, async |sum, paid| sum + paid).await;
    }
    Ok(paid)
}

/// Pays the debts of one resource; answers how many were.
async fn pay_all(engine: &Engine, debts: Vec<Cleanup>) -> usize {
    let mut paid = 0;
    for owed in debts {
        // Not before a former owner has let go of it.
        if engine.stop.is_cancelled() || engine.deps.ring.until_mine(owed.resource_id, Instant::now()).await.is_err() {
            break;
        }
        let id = owed.id;
        match pay(engine, owed).await {
            Ok(done) => paid += usize::from(done),
            // It is as due as it was, and is tried again with the next look.
            Err(error) => tracing::warn!(cleanup.id = %id, error = error.chain(), "a debt could not be written to"),
        }
    }
    paid
}

/// Tries one; whether it was paid. One that was not is due again later, each time after twice as long.
async fn pay(engine: &Engine, owed: Cleanup) -> Result<bool> {
    let deps = &engine.deps;
    let (id, attempts, lost) = (owed.id, owed.attempts, deps.ring.lost(owed.resource_id));
    let paying = async {
        match engine.flows.0.get(owed.kind.as_str()) {
            Some(flow) => flow.clean_up(deps, owed).await,
            None => Err(Error::internal(format_args!("this controller has no flow {}", owed.kind))),
        }
    };
    // The next owner pays it; what a host was told already it may do once more.
    let result = tokio::select! {
        result = paying => result,
        () = lost => return Ok(false),
    };
    let Err(error) = result else { return Ok(true) };
    tracing::warn!(cleanup.id = %id, attempts, error = error.chain(), "clean-up failed; it stays owed");
    let wait = 1000_i64.saturating_mul(1 << attempts.min(10)).min(MAX_WAIT_MS);
    let next_at = deps.clock.now().plus_ms(wait / 2 + rand::random_range(0..=wait / 2));
    let postponed =
        deps.db.write(move |tx| Box::pin(async move { db::cleanup::postpone(tx, id, next_at, &error.chain()).await }));
    postponed.await?;
    Ok(false)
}

/// Undoes one step of a job that has ended, and forgets the debt.
pub(super) async fn clean_up<F: Flow>(deps: &Arc<Deps>, owed: Cleanup) -> Result<()> {
    let state: F::State = serde_json::from_str(&owed.data)
        .map_err(|e| Error::internal(format_args!("clean-up {} could not be read: {e}", owed.id)))?;
    let job = {
        let mut conn = deps.db.read().await?;
        db::job::get(&mut conn, owed.job_id).await?
    };
    let Some(step) = F::steps(&state).into_iter().find(|step| step.name() == owed.step) else {
        return Err(Error::internal(format_args!("flow {} has no step {}", F::KIND, owed.step)));
    };
    let deadline = Instant::now() + TRY_TIMEOUT;
    let cx = StepCx {
        at: At {
            job_id: owed.job_id,
            account_id: job.as_ref().map_or_else(Default::default, |row| row.job.account_id),
            request_id: job.as_ref().map_or("clean-up", |row| row.job.request_id.as_str()).into(),
            trace: job.as_ref().and_then(|row| Trace::parse(&row.traceparent)).unwrap_or_default(),
            now: deps.clock.now(),
            generation: deps.ring.generation(),
            controller_id: deps.ring.me(),
        },
        deps: Arc::clone(deps),
        deadline,
        cancel: CancellationToken::new(),
        resource: owed.resource_id,
        step: step.name(),
        undoing: !step.owed_when_failing(),
        attempt: 1000 + owed.attempts,
        share: (0, 0),
        leave: CancellationToken::new(),
        progress_written: AtomicI64::new(0),
    };
    let work = async {
        if step.owed_when_failing() { step.apply(&cx, &mut state.clone()).await } else { step.undo(&cx, &state).await }
    };
    let (request_id, trace) = (Arc::clone(&cx.request_id), cx.trace);
    let done = tokio::time::timeout_at(deadline, trace::within(request_id, trace, Box::pin(work))).await;
    match done.unwrap_or_else(|_| Err(Error::new(Code::DeadlineExceeded, "clean-up took too long"))) {
        // The host was removed from the cloud: there is nobody left to owe anything to.
        Err(error) if error.code == Code::NotFound => {}
        result => result?,
    }
    let (id, job_id, name) = (owed.id, owed.job_id, owed.step);
    let forgotten = deps.db.write(move |tx| {
        Box::pin(async move {
            db::cleanup::delete(tx, id).await?;
            db::job::forget_cleanup(tx, job_id, &name).await
        })
    });
    Ok(forgotten.await?)
}
