//! Threads for work that blocks: SQLite reads and writes on the thread that asks.

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Error, Result};

/// Runs `work` on a thread of its own, and `closed` is cancelled when it has ended. What is spawned by the
/// handle runs there as well, as long.
pub(super) fn own(
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
    closed: CancellationToken,
    tasks: &TaskTracker,
) -> Result<Handle> {
    let failed = |error| Error::Sql(sqlx::Error::Io(error));
    let runtime = Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let (handle, ended) = (runtime.handle().clone(), closed.clone().drop_guard());
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        runtime.block_on(work);
        // What was spawned there ends before anybody is told.
        drop(runtime);
        drop(ended);
    });
    thread.map_err(failed)?;
    tasks.spawn(async move { closed.cancelled().await });
    Ok(handle)
}
