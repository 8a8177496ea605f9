//! Runs reconcilers: each in its own loop, one run at a time, with a pause between two runs.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use shared::{Code, Error, Result};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type Run = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync>;

/// How long one run may take. What it waits for after that does not come any more.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// A reconciler: a name, a pause between two runs, and what one run does.
pub struct Reconciler {
    name: &'static str,
    every: Duration,
    run: Run,
}

impl Reconciler {
    /// A reconciler that calls `run` every `every`.
    pub fn new<F, Fut>(name: &'static str, every: Duration, run: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self { name, every, run: Box::new(move || Box::pin(run())) }
    }
}

/// Starts `reconcilers`; they end at `stop`.
pub fn spawn(reconcilers: Vec<Reconciler>, tasks: &TaskTracker, stop: &CancellationToken) {
    for reconciler in reconcilers {
        let stop = stop.clone();
        tasks.spawn(async move {
            loop {
                let run = tokio::time::timeout(LONGEST, (reconciler.run)());
                let run =
                    run.map(|run| run.unwrap_or_else(|_| Err(Error::new(Code::DeadlineExceeded, "it did not end"))));
                match AssertUnwindSafe(run).catch_unwind().await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(
                            reconciler = reconciler.name,
                            error = error.chain(),
                            detail = error.detail,
                            "a reconciler failed"
                        );
                    }
                    Err(_) => tracing::error!(reconciler = reconciler.name, "a reconciler panicked"),
                }
                // Jitter keeps the reconcilers of several controllers apart.
                let pause = reconciler.every.mul_f64(rand::random_range(0.8..1.2));
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
            }
        });
    }
}
