//! One queue per resource: work about one resource runs one at a time, in the order of arrival.
//!
//! A resource that has nothing to do costs nothing: its queue and its task exist only while there is
//! work. Queues are bounded; a full one refuses instead of growing.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

const SHARDS: usize = 64;

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} requests already wait for this resource")]
pub struct Full {
    /// How many wait.
    pub waiting: usize,
}

/// All queues of one kind of work.
pub struct Queues {
    shards: Vec<Mutex<HashMap<Uuid, VecDeque<Work>>>>,
    bound: usize,
    tasks: TaskTracker,
}

impl Queues {
    /// Queues that hold at most `bound` waiting works each; their tasks are owned by `tasks`.
    #[must_use]
    pub fn new(bound: usize, tasks: TaskTracker) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        Arc::new(Self { shards, bound, tasks })
    }

    fn shard(&self, key: Uuid) -> &Mutex<HashMap<Uuid, VecDeque<Work>>> {
        // The last bytes of every UUID version are random.
        &self.shards[key.as_bytes()[15] as usize % SHARDS]
    }

    /// Appends `work` to the queue of `key`. It runs when everything before it has ended.
    pub fn push(self: &Arc<Self>, key: Uuid, work: impl Future<Output = ()> + Send + 'static) -> Result<(), Full> {
        let work: Work = Box::pin(work);
        {
            let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(queue) = shard.get_mut(&key) {
                if queue.len() >= self.bound {
                    return Err(Full { waiting: queue.len() });
                }
                queue.push_back(work);
                return Ok(());
            }
            shard.insert(key, VecDeque::new());
        }
        self.tasks.spawn(Arc::clone(self).drain(key, work));
        Ok(())
    }

    async fn drain(self: Arc<Self>, key: Uuid, first: Work) {
        let mut next = Some(first);
        while let Some(work) = next {
            // A panic ends its own work only; whoever waits for it sees its reply channel close.
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                tracing::error!(resource.id = %key, "work on a resource panicked");
            }
            let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
            next = shard.get_mut(&key).and_then(VecDeque::pop_front);
            if next.is_none() {
                shard.remove(&key);
            }
        }
    }

    /// Whether a resource that `matches` has work.
    pub fn any(&self, matches: impl Fn(Uuid) -> bool) -> bool {
        self.shards.iter().any(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.keys().any(|key| matches(*key))
        })
    }

    /// How many resources have work, and how many works wait.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        self.shards.iter().fold((0, 0), |(busy, waiting), shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            (busy + shard.len(), waiting + shard.values().map(VecDeque::len).sum::<usize>())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::{Semaphore, mpsc};

    #[tokio::test]
    async fn works_of_one_resource_run_in_order_and_those_of_others_beside_them() {
        let queues = Queues::new(10, TaskTracker::new());
        let gate = Arc::new(Semaphore::new(0));
        let (tx, mut rx) = mpsc::unbounded_channel();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for n in 0..3 {
            let (gate, tx) = (gate.clone(), tx.clone());
            queues
                .push(a, async move {
                    gate.acquire().await.unwrap().forget();
                    tx.send(n).unwrap();
                })
                .unwrap();
        }
        queues.push(b, async move { tx.send(100).unwrap() }).unwrap();
        assert_eq!(rx.recv().await, Some(100));
        gate.add_permits(3);
        assert_eq!([rx.recv().await, rx.recv().await, rx.recv().await], [Some(0), Some(1), Some(2)]);
        assert_eq!(rx.recv().await, None);
        queues.tasks.close();
        queues.tasks.wait().await;
        assert_eq!(queues.sizes(), (0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_panic_does_not_stop_it() {
        let queues = Queues::new(1, TaskTracker::new());
        let gate = Arc::new(Semaphore::new(0));
        let (tx, mut rx) = mpsc::unbounded_channel();
        let key = Uuid::from_u128(1);
        let held = gate.clone();
        queues
            .push(key, async move {
                held.acquire().await.unwrap().forget();
                panic!("a defect");
            })
            .unwrap();
        queues.push(key, async move { tx.send(1).unwrap() }).unwrap();
        assert_eq!(queues.push(key, async {}), Err(Full { waiting: 1 }));
        gate.add_permits(1);
        assert_eq!(rx.recv().await, Some(1));
    }
}
