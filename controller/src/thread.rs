//! Threads of their own: for what blocks, and for what nothing else shall delay.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs `work` on a thread of its own, and `closed` is cancelled when it has ended. What is spawned by the
/// handle runs there as well, as long.
///
/// # Errors
/// When there can be no thread.
pub fn own(
    name: &'static str,
    work: impl Future<Output = ()> + Send + 'static,
    closed: CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (handle, ended) = (runtime.handle().clone(), closed.clone().drop_guard());
    std::thread::Builder::new().name(name.into()).spawn(move || {
        runtime.block_on(work);
        // What was spawned there ends before anybody is told.
        drop(runtime);
        drop(ended);
    })?;
    tasks.spawn(async move { closed.cancelled().await });
    Ok(handle)
}
