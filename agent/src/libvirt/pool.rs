//! A bounded pool of operating-system threads for calls that block.
//!
//! libvirt's library blocks, and a daemon that hangs blocks it for ever. A call that does not come
//! back in time costs its caller an error and the pool one thread until it does come back; when all
//! threads are lost that way, callers are refused at once. The async runtime is never held up.
//!
//! A caller may give up (its time is over, its command is cancelled) while the call is still inside
//! libvirt. Such a call leaves no effect behind: before it acts it says how to take its effect back,
//! and when it has ended and nobody has taken its result, that is done, whether it succeeded or not.
//! Until then it keeps its place in the order of its VM, see [`super::lane`].
//!
//! ```text
//! queued ──▶ inside libvirt ──▶ ended ──▶ result taken                        ──▶ place given up
//!    └─ nobody waits: left out    └─────▶ nobody waits: effect is taken back ──▶ place given up
//! ```

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use trace::span::around;
use trace::{Kind, Span};

use super::Error;
use super::lane::Place;

type Job = Box<dyn FnOnce() + Send>;

/// Takes an effect back; runs on a thread of the pool.
pub type TakeBack = Box<dyn FnOnce() -> Result<(), Error> + Send>;

/// Where a call says, before it acts, how its effect is taken back; `None` when it will have none.
pub type Undo = Option<TakeBack>;

/// Calls that may wait for each thread.
const QUEUE_PER_THREAD: usize = 64;

/// See the module. The threads end when the pool is dropped and their calls are done.
#[derive(Debug)]
pub struct Pool {
    queue: Arc<Queue>,
}

impl Pool {
    /// A pool of `threads` threads, at least one.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let pool = Self { queue: Arc::new(Queue { most: threads * QUEUE_PER_THREAD, ..Queue::default() }) };
        for n in 0..threads {
            let queue = Arc::clone(&pool.queue);
            std::thread::Builder::new()
                .name(format!("libvirt-{n}"))
                .stack_size(1 << 20)
                .spawn(move || while queue.next().map(|job| job()).is_some() {})?;
        }
        Ok(pool)
    }

    /// Runs `work` on a thread of the pool and waits for it for at most `limit`. A call that nobody
    /// waits for any more when its turn comes is left out; one that is under way by then is taken
    /// back, as the module says. `place` is kept until one or the other is done.
    ///
    /// # Errors
    /// Those of `work`, [`Error::Busy`] and [`Error::Hung`].
    pub async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        place: Option<Place>,
        work: impl FnOnce(&mut Undo) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let describe = |span: &mut Span| span.rename(|| format!("libvirt {call}"));
        around(Kind::Client, "libvirt", describe, self.run_call(call, limit, place, work)).await
    }

    async fn run_call<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        place: Option<Place>,
        work: impl FnOnce(&mut Undo) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let mut effect = Effect { call, undo: None, place, queue: Arc::clone(&self.queue) };
        let job: Job = Box::new(move || {
            if answer.is_closed() {
                return;
            }
            // The library's wrapper panics on answers that it does not expect; a thread must survive that.
            let result = catch_unwind(AssertUnwindSafe(|| work(&mut effect.undo)))
                .unwrap_or_else(|_| Err(Error::Failed { call, message: "the call ended in a panic".into() }));
            // When the caller has given up meanwhile, or does before it looks, the effect is dropped untaken.
            let _ = answer.send((result, effect));
        });
        self.queue.put(job)?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok((result, effect))) => {
                effect.keep();
                result
            }
            Ok(Err(_)) => Err(Error::Unreachable { reason: "the agent is stopping".into() }),
            Err(_) => Err(Error::Hung { call, after: limit }),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.more.notify_all();
    }
}

/// What a call that has begun has done, as long as nobody knows of it.
struct Effect {
    call: &'static str,
    undo: Undo,
    place: Option<Place>,
    queue: Arc<Queue>,
}

impl Effect {
    /// The caller knows: whatever has to be done about it is the caller's business.
    fn keep(mut self) {
        self.undo = None;
    }
}

impl Drop for Effect {
    fn drop(&mut self) {
        let Some(take_back) = self.undo.take() else { return };
        let (call, place) = (self.call, self.place.take());
        // Whoever drops it may be a task of the async runtime: the calls are made on a thread of the pool.
        self.queue.put_first(Box::new(move || {
            match catch_unwind(AssertUnwindSafe(take_back)) {
                Ok(Ok(())) => tracing::info!(call, "nobody waited for a call any more; its effect was taken back"),
                Ok(Err(error @ (Error::NoDomain(_) | Error::WrongState { .. }))) => {
                    tracing::info!(call, %error, "nobody waited for a call any more; nothing is left of its effect");
                }
                Ok(Err(error)) => tracing::error!(call, %error, "an abandoned call's effect could not be taken back"),
                Err(_) => tracing::error!(call, "taking an abandoned call's effect back ended in a panic"),
            }
            drop(place);
        }));
    }
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    more: Condvar,
    most: usize,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, job: Job) -> Result<(), Error> {
        let mut jobs = self.lock();
        if jobs.waiting.len() >= self.most {
            return Err(Error::Busy);
        }
        jobs.waiting.push_back(job);
        drop(jobs);
        self.more.notify_one();
        Ok(())
    }

    /// For what is owed already: it is never refused, and there are never more of it than calls.
    fn put_first(&self, job: Job) {
        self.lock().waiting.push_front(job);
        self.more.notify_one();
    }

    /// The next job; `None` when there will be none any more.
    fn next(&self) -> Option<Job> {
        let wait = |jobs: &mut Jobs| jobs.waiting.is_empty() && !jobs.closed;
        let mut jobs = self.more.wait_while(self.lock(), wait).unwrap_or_else(PoisonError::into_inner);
        jobs.waiting.pop_front()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.lock().waiting.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
