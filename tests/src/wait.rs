//! Waiting for conditions: the only place where a test lets time pass.

use std::time::Duration;

use tokio::time::Instant;

/// How long a condition may take to become true. Generous: a machine under load must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(15);

/// Looks again and again until `look` succeeds.
///
/// # Errors
/// The last failure, when it has not succeeded in time.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => return Err(error.context(format!("waited in vain: {what}"))),
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}

/// Looks again and again until `look` is true.
///
/// # Errors
/// When it has not become true in time.
pub async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    eventually(what, async || {
        anyhow::ensure!(look().await, "it is not so");
        Ok(())
    })
    .await
}
