//! A bounded pool of operating-system threads for calls that block.
//!
//! libvirt's library blocks, and a daemon that hangs blocks it for ever. A call that does not come
//! back in time costs its caller an error and the pool one thread until it does come back; when all
//! threads are lost that way, callers are refused at once. The async runtime is never held up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Error;

type Job = Box<dyn FnOnce() + Send>;

/// Calls that may wait for each thread.
const QUEUE_PER_THREAD: usize = 64;

/// See the module. The threads end when the pool is dropped and their calls are done.
#[derive(Debug)]
pub struct Pool {
    queue: SyncSender<Job>,
}

impl Pool {
    /// A pool of `threads` threads, at least one.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let (queue, jobs) = sync_channel::<Job>(threads * QUEUE_PER_THREAD);
        let jobs = Arc::new(Mutex::new(jobs));
        for n in 0..threads {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new()
                .name(format!("libvirt-{n}"))
                .stack_size(1 << 20)
                .spawn(move || while next(&jobs).map(|job| job()).is_some() {})?;
        }
        Ok(Self { queue })
    }

    /// Runs `work` on a thread of the pool and waits for it for at most `limit`. A call that nobody
    /// waits for any more when its turn comes is left out.
    ///
    /// # Errors
    /// Those of `work`, [`Error::Busy`] and [`Error::Hung`].
    pub async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            if answer.is_closed() {
                return;
            }
            // The library's wrapper panics on answers that it does not expect; a thread must survive that.
            let result = catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(Error::Failed { call, message: "the call ended in a panic".into() }));
            // The caller may have given up meanwhile.
            let _ = answer.send(result);
        });
        match self.queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => {
                return Err(Error::Unreachable { reason: "the agent is stopping".into() });
            }
        }
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Unreachable { reason: "the agent is stopping".into() }),
            Err(_) => Err(Error::Hung { call, after: limit }),
        }
    }
}

fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_hung_call_costs_one_thread_and_others_go_on() {
        let pool = Pool::new(2).unwrap();
        let (release, hang) = channel::<()>();
        let hung = pool.run("hang", Duration::from_millis(1), move || {
            let _ = hang.recv();
            Ok(())
        });
        assert!(matches!(hung.await, Err(Error::Hung { call: "hang", .. })));
        assert_eq!(pool.run("add", LONG, || Ok(1 + 1)).await.unwrap(), 2);
        drop(release);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_forgotten_calls_are_left_out() {
        let pool = Pool::new(1).unwrap();
        let (release, hang) = channel::<()>();
        let (started, has_started) = channel::<()>();
        let first = pool.run("hang", LONG, move || {
            let _ = started.send(());
            let _ = hang.recv();
            Ok(())
        });
        let rest = async {
            tokio::task::spawn_blocking(move || has_started.recv()).await.unwrap().unwrap();
            for _ in 0..QUEUE_PER_THREAD {
                let run = pool.run("late", Duration::ZERO, || -> Result<(), Error> { panic!("must not run") });
                assert!(matches!(run.await, Err(Error::Hung { .. })));
            }
            assert!(matches!(pool.run("late", LONG, || Ok(())).await, Err(Error::Busy)));
            drop(release);
        };
        let (first, ()) = tokio::join!(first, rest);
        first.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_survives() {
        let pool = Pool::new(1).unwrap();
        let result = pool.run("panic", LONG, || -> Result<(), Error> { panic!("as the wrapper may") }).await;
        assert!(matches!(result, Err(Error::Failed { call: "panic", .. })));
        assert_eq!(pool.run("add", LONG, || Ok(2)).await.unwrap(), 2);
    }
}
