//! Request-replies a second between two controllers over RabbitMQ: by the bus, and by the client library
//! alone with the same size of messages, number in flight and guarantees (confirms, `mandatory`,
//! acknowledgements, one connection to send and one to receive on each side).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use controller::bus::envelope::Envelope;
use controller::bus::{Registry, Request as _};
use controller::cx::Cx;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{StreamExt as _, TryStreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Bench;
use super::bus::Add;
use super::process::{Spent, Watch};
use crate::broker::{Broker, Node};

/// Requests that are on their way at a time.
const WINDOWS: [usize; 3] = [1, 16, MOST];
const MOST: usize = 128;
/// Each is measured so often, in turn, because neither the machine nor the sizes of the batches that form are the
/// same at all times.
const ROUNDS: usize = 9;
/// What may be unacknowledged, as the bus has it.
const PREFETCH: u16 = 256;

/// Measures both; the middle of the rounds counts. With few calls on their way at a time, fewer are made.
pub(super) async fn run(bench: &mut Bench, calls: u64) -> anyhow::Result<()> {
    let broker = Broker::start().await?;
    bench.version("broker", broker.version().await?);
    for window in WINDOWS {
        let calls = (calls * window as u64 / MOST as u64).max(calls / 20).div_ceil(ROUNDS as u64);
        let (mut bus, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(measure_bare(&broker, calls, window).await?);
            bus.push(measure_bus(&broker, calls, window).await?);
        }
        let of = (window, "calls at a time");
        let mut middle = |rounds: &mut Vec<Spent>, by: &str| {
            rounds.sort_by(|one, other| one.wall.total_cmp(&other.wall));
            let each = rounds.get(ROUNDS / 2).context("no round")?;
            bench.point(of, &format!("each, {by}"), each.wall * 1e6, "µs", "");
            bench.point(of, &format!("each, {by}, processor time of both sides"), each.bench * 1e6, "µs", "");
            bench.point(of, &format!("each, {by}, processor time of the machine"), each.machine * 1e6, "µs", "");
            anyhow::Ok(each.wall)
        };
        let (bus, bare) = (middle(&mut bus, "over RabbitMQ")?, middle(&mut bare, "by lapin alone")?);
        let asked = if window == MOST { "at least 0.8" } else { "" };
        bench.point(of, "bus / lapin alone", bare / bus, "", asked);
        if window == MOST {
            bench.figure("request-replies a second, over RabbitMQ", 1.0 / bus, "1/s", "");
        }
    }
    Ok(())
}

fn add(n: u64) -> Add {
    Add { a: n, b: 1, about: None }
}

async fn measure_bus(broker: &Broker, calls: u64, window: usize) -> anyhow::Result<Spent> {
    let serve = |registry: &mut Registry| registry.serve(|_, m: Add| async move { Ok(m.a + m.b) });
    let (one, two) = (Node::start(broker.settings(), serve), Node::start(broker.settings(), serve));
    one.connected().await?;
    two.connected().await?;
    [&one, &two].into_iter().for_each(|node| node.ring.install(1, &[one.id, two.id]));
    let cx = Cx::system(Duration::from_secs(600));
    let watch = Watch::of(std::process::id())?;
    let replies = stream::iter(0..calls).map(|n| one.bus.call_at(two.id, &cx, add(n))).buffer_unordered(window);
    let sum: u64 = replies.try_fold(0, async |sum, reply| Ok(sum + reply)).await?;
    let spent = watch.spent()?.each(calls as usize);
    anyhow::ensure!(sum == calls * (calls + 1) / 2, "the sum is wrong: {sum}");
    one.leave().await;
    two.leave().await;
    Ok(spent)
}

/// One side of the conversation of the client library.
struct Side {
    sends: Channel,
    receives: Channel,
    consumer: Consumer,
    _connections: [Connection; 2],
}

impl Side {
    async fn open(broker: &Broker, queue: &str) -> anyhow::Result<Self> {
        let connect = || Connection::connect(&broker.url, ConnectionProperties::default());
        let connections = [connect().await?, connect().await?];
        let (sends, receives) = (connections[0].create_channel().await?, connections[1].create_channel().await?);
        sends.confirm_select(ConfirmSelectOptions::default()).await?;
        receives.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let options = QueueDeclareOptions { durable: true, auto_delete: true, ..QueueDeclareOptions::default() };
        receives.queue_declare(queue.into(), options, FieldTable::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer = receives.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        Ok(Self { sends, receives, consumer, _connections: connections })
    }
}

async fn publish(channel: &Channel, queue: &str, id: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let properties = BasicProperties::default()
        .with_delivery_mode(1)
        .with_expiration("600000".into())
        .with_correlation_id(id.into());
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let confirm = channel.basic_publish("".into(), queue.into(), options, bytes, properties).await?.await?;
    anyhow::ensure!(confirm.is_ack(), "the broker refused a message");
    anyhow::ensure!(confirm.take_message().is_none(), "a message came back");
    Ok(())
}

async fn measure_bare(broker: &Broker, calls: u64, window: usize) -> anyhow::Result<Spent> {
    let (requests, replies) = ("bench.requests", "bench.replies");
    let client = Side::open(broker, replies).await?;
    let server = Side::open(broker, requests).await?;
    let bytes = Envelope::wrap(&Cx::system(Duration::from_secs(600)), Add::SERVICE, &add(1), 1, 0)?.encode()?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(serve(server, replies, bytes.clone(), stop.clone()));
    let waiting: Arc<Mutex<HashMap<String, oneshot::Sender<()>>>> = Arc::default();
    tasks.spawn(receive(client.consumer, client.receives, Arc::clone(&waiting), stop.clone()));
    let watch = Watch::of(std::process::id())?;
    let asked = stream::iter(0..calls).map(|n| {
        let (id, sends, waiting, bytes) = (n.to_string(), &client.sends, &waiting, &bytes);
        async move {
            let (done, reply) = oneshot::channel();
            waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), done);
            publish(sends, requests, &id, bytes).await?;
            reply.await.context("no reply")
        }
    });
    asked.buffer_unordered(window).try_for_each(async |()| Ok(())).await?;
    let spent = watch.spent()?.each(calls as usize);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(spent)
}

/// Answers every request with a message of the same size.
async fn serve(side: Side, replies: &'static str, bytes: Vec<u8>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut requests = side.consumer.ready_chunks(usize::from(PREFETCH));
    let mut answering = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(answered) = answering.next() => { let () = answered?; }
            batch = requests.next() => {
                let mut last = 0;
                for request in batch.context("the requests ended")? {
                    let request = request?;
                    last = request.delivery_tag;
                    let id = request.properties.correlation_id().as_ref().map(|id| id.as_str().to_string());
                    let (sends, bytes) = (&side.sends, &bytes);
                    answering.push(async move { publish(sends, replies, &id.unwrap_or_default(), bytes).await });
                }
                side.receives.basic_ack(last, BasicAckOptions { multiple: true }).await?;
            }
        }
    }
}

/// Hands replies to those who wait.
async fn receive(
    replies: Consumer,
    channel: Channel,
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut replies = replies.ready_chunks(usize::from(PREFETCH));
    while let Some(Some(batch)) = stop.run_until_cancelled(replies.next()).await {
        let mut last = 0;
        for reply in batch {
            let reply = reply?;
            last = reply.delivery_tag;
            let id = reply.properties.correlation_id().as_ref().map_or("", |id| id.as_str());
            if let Some(done) = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id) {
                // A call that failed waits no more.
                let _ = done.send(());
            }
        }
        channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
    }
    Ok(())
}
