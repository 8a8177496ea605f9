//! `bus`: request-replies a second in one process, on one thread; and between two buses over RabbitMQ,
//! beside what the client library does alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use controller::bus::{Bus, Limits, LocalTransport, Loopback, Message, Registry, Request};
use controller::clock::Clock;
use controller::cx::Cx;
use controller::ring::Ring;
use serde::{Deserialize, Serialize};
use shared::id::ControllerId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Bench;

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Add {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) about: Option<Uuid>,
}

impl Message for Add {
    const NAME: &'static str = "bench.Add";
}

impl Request for Add {
    type Reply = u64;
    const SERVICE: &'static str = "bench";
    fn resource(&self) -> Option<Uuid> {
        self.about
    }
}

/// Calls in the process, and those that are written and read there, for one over the broker.
const DIRECT: u64 = 25;
const WRITTEN: u64 = 3;
/// Calls that are on their way at a time; the figure that is asked for is that of the last.
const WINDOWS: [u64; 3] = [1, 8, 64];

/// Measures, with so many calls over the broker.
///
/// # Errors
/// When a call fails.
pub async fn run(calls: u64) -> anyhow::Result<()> {
    let bench = Bench::begin("bus")?.on(super::NONE);
    let mut bench = tokio::task::spawn_blocking(move || in_process(bench, calls)).await??;
    super::bus_broker::run(&mut bench, calls).await?;
    bench.end()
}

/// On one thread, which does nothing else.
fn in_process(mut bench: Bench, calls: u64) -> anyhow::Result<Bench> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (name, loopback, keyed, times) in [
        ("direct, one service", Loopback::Direct, false, DIRECT),
        ("direct, each about a resource", Loopback::Direct, true, DIRECT),
        ("written and read, one service", Loopback::Broker, false, WRITTEN),
    ] {
        let target = if loopback == Loopback::Direct { "at least 500,000" } else { "" };
        for window in WINDOWS {
            let calls = (calls * times).next_multiple_of(window);
            let took = runtime.block_on(measure(loopback, keyed, calls, window))?.as_secs_f64();
            bench.point(
                (window as usize, "calls at a time"),
                &format!("each, {name}"),
                took * 1e6 / calls as f64,
                "µs",
                "",
            );
            if Some(&window) == WINDOWS.last() {
                bench.figure(format!("request-replies a second, {name}"), calls as f64 / took, "1/s", target);
            }
        }
    }
    Ok(bench)
}

async fn measure(loopback: Loopback, keyed: bool, calls: u64, window: u64) -> anyhow::Result<Duration> {
    let me = ControllerId::new();
    let ring = Ring::new(me);
    ring.install(1, &[me]);
    let tasks = TaskTracker::new();
    let mut registry = Registry::new(tasks.clone());
    registry.serve(|_, m: Add| async move { Ok(m.a + m.b) });
    let (transport, inbox) = LocalTransport::new(me, 1024);
    let stop = CancellationToken::new();
    let wires = (Arc::new(transport) as _, inbox);
    let bus = Bus::start(registry, ring, Clock::default(), Limits::default(), loopback, wires, (tasks, stop.clone()));
    let cx = Cx::system(Duration::from_secs(600));
    let begin = Instant::now();
    let mut sum = 0;
    for round in 0..calls / window {
        let about = |n| keyed.then(|| Uuid::from_u64_pair(round, n));
        let messages = (0..window).map(|n| Add { a: n, b: 1, about: about(n) }).collect();
        for reply in bus.call_all(&cx, window as usize, messages).await {
            sum += reply?;
        }
    }
    let took = begin.elapsed();
    anyhow::ensure!(sum == calls / window * (window * (window - 1) / 2 + window), "the sum is wrong: {sum}");
    stop.cancel();
    Ok(took)
}
