//! Point reads that wait together are done together: one query for many ids.
//!
//! Handing a query to another thread or another machine costs more than looking up a row. Whoever asks
//! while a query runs is answered by the next one, so a busy controller makes few queries of many rows
//! and an idle one answers at once. A read begins after it was asked for, so it sees every write that
//! was answered before.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use shared::Error;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::long::Long;
use super::pool::Pool;
use super::{Conn, Result};

/// Most rows in one query.
const GROUP: usize = 128;
/// Most readers that wait; more of them wait for their turn to wait.
const QUEUE: usize = 16_384;

/// What was found, by key; what is missing was not there. A row that cannot be read fails alone.
pub(super) type Found<K, V> = HashMap<K, Result<V>>;
/// Reads the rows of some keys.
pub(super) type Read<K, V> = for<'c> fn(&'c mut Conn, &'c [K]) -> BoxFuture<'c, Result<Found<K, V>>>;

/// Where the connections come from.
#[derive(Clone)]
pub(super) enum Source {
    /// One for each query.
    Pool(Pool),
    /// One for all: each query is short.
    One(Arc<Mutex<Conn>>),
    /// One of those that may take long.
    Long(Long),
}

type Answer<V> = oneshot::Sender<shared::Result<Option<V>>>;

/// Reads of one kind of row.
pub struct Gathered<K, V> {
    queue: mpsc::Sender<(K, Answer<V>)>,
}

impl<K, V> Clone for Gathered<K, V> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<K, V> Gathered<K, V>
where
    K: Copy + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    /// Starts with connections of `source`, at most `parallel` queries at a time, which run where `on` says.
    pub(super) fn start(
        source: Source,
        parallel: usize,
        read: Read<K, V>,
        (tasks, on): (&TaskTracker, &Handle),
    ) -> Self {
        let (queue, mut asked) = mpsc::channel(QUEUE);
        let run = async move {
            let (mut running, mut group) = (FuturesUnordered::new(), Vec::new());
            loop {
                tokio::select! {
                    Some(()) = running.next() => {}
                    some = asked.recv_many(&mut group, GROUP), if running.len() < parallel => {
                        if some == 0 {
                            break;
                        }
                        // On a busy controller many requests are ready to run: each comes as far as its
                        // question first. On an idle one this takes no time.
                        tokio::task::yield_now().await;
                        while group.len() < GROUP
                            && let Ok(more) = asked.try_recv()
                        {
                            group.push(more);
                        }
                        running.push(answer(&source, read, std::mem::take(&mut group)));
                    }
                }
            }
            while running.next().await.is_some() {}
        };
        tasks.spawn_on(run, on);
        Self { queue }
    }

    /// The row of a key, if there is one.
    ///
    /// # Errors
    /// What the database says, as users are told.
    pub async fn get(&self, key: K) -> shared::Result<Option<V>> {
        let (answer, found) = oneshot::channel();
        self.queue.send((key, answer)).await.map_err(|_| closed())?;
        found.await.map_err(|_| closed())?
    }
}

fn closed() -> Error {
    super::Error::Closed.into()
}

async fn answer<K, V>(source: &Source, read: Read<K, V>, group: Vec<(K, Answer<V>)>)
where
    K: Copy + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    let mut keys: Vec<K> = Vec::with_capacity(group.len());
    let mut askers: HashMap<K, Vec<Answer<V>>> = HashMap::with_capacity(group.len());
    // Nobody is asked for who does not wait any more.
    for (key, answer) in group.into_iter().filter(|(_, answer)| !answer.is_closed()) {
        let waiting = askers.entry(key).or_default();
        if waiting.is_empty() {
            keys.push(key);
        }
        waiting.push(answer);
    }
    if keys.is_empty() {
        return;
    }
    let keys = padded(keys);
    let found = super::soon(async {
        match source {
            Source::Pool(pool) => read(&mut pool.get().await?, &keys).await,
            Source::One(conn) => read(&mut *conn.lock().await, &keys).await,
            Source::Long(long) => long.read(move |conn| Box::pin(async move { read(conn, &keys).await })).await,
        }
    });
    match found.await {
        Ok(mut found) => {
            for (key, waiting) in askers {
                let row = found.remove(&key).transpose().map_err(Error::from);
                give(waiting, row);
            }
        }
        Err(error) => {
            let error = Error::from(error);
            for waiting in askers.into_values() {
                give(waiting, Err(error.clone()));
            }
        }
    }
}

fn give<V: Clone>(waiting: Vec<Answer<V>>, row: shared::Result<Option<V>>) {
    let mut waiting = waiting.into_iter();
    let Some(first) = waiting.next() else { return };
    // Sending fails when nobody waits any more.
    for other in waiting {
        let _ = other.send(row.clone());
    }
    let _ = first.send(row);
}

/// Repeats the last key up to the next power of two: the texts of queries stay few, and each is
/// prepared once a connection.
fn padded<K: Copy>(mut keys: Vec<K>) -> Vec<K> {
    if let Some(last) = keys.last().copied() {
        keys.resize(keys.len().next_power_of_two(), last);
    }
    keys
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use shared::Code;
    use shared::id::VmId;

    use super::*;
    use crate::db::query;
    use crate::db::testing::{Seed, dbs};

    #[tokio::test]
    async fn rows_that_are_asked_for_together_are_each_ones_own() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let insert = db.write(move |tx| {
                async move {
                    let mut vms = Vec::new();
                    for n in 0..5 {
                        vms.push(seed.insert_vm(tx, &format!("vm-{n}")).await?);
                    }
                    query("UPDATE vm SET hostname = 'x', vcpus = -1 WHERE id = $1")
                        .bind(vms[4].to_string())
                        .execute(tx.conn())
                        .await?;
                    Ok(vms)
                }
                .boxed()
            });
            let vms = insert.await.unwrap();
            let missing = VmId::new();
            let asked = [vms[0], vms[1], missing, vms[4], vms[0], vms[2], vms[3]];
            let found = join_all(asked.map(|id| db.vms.get(id))).await;
            for (asked, found) in asked.iter().zip(&found) {
                match found {
                    Ok(Some(vm)) => assert_eq!(vm.id, *asked),
                    Ok(None) => assert_eq!(*asked, missing),
                    Err(error) => assert!(*asked == vms[4] && error.code == Code::Internal, "{error:?}"),
                }
            }
            assert_eq!(found.iter().filter(|found| found.is_err()).count(), 1);
            assert_eq!(found.iter().flatten().flatten().count(), 5);
        }
    }

    #[tokio::test]
    async fn more_readers_than_one_query_takes_are_all_answered() {
        for db in dbs().await {
            let seed = Seed::planted(&db).await;
            let vm = db.write(move |tx| async move { seed.insert_vm(tx, "a").await }.boxed()).await.unwrap();
            let all = join_all((0..3 * GROUP).map(|n| db.vms.get(if n % 2 == 0 { vm } else { VmId::new() }))).await;
            let all: Vec<_> = all.into_iter().collect::<shared::Result<_>>().unwrap();
            assert_eq!(all.iter().flatten().count(), 3 * GROUP / 2);
        }
    }

    #[test]
    fn queries_come_in_few_lengths() {
        assert_eq!(padded(vec![1, 2, 3]), [1, 2, 3, 3]);
        assert_eq!(padded(vec![1]), [1]);
        assert!(padded(Vec::<u8>::new()).is_empty());
        assert_eq!(padded(vec![0; GROUP]).len(), GROUP);
    }
}
