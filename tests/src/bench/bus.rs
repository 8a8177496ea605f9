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

const CALLS: u64 = 500_000;
/// Calls that are on their way at a time.
const WINDOW: u64 = 64;

/// Measures.
///
/// # Errors
/// When a call fails.
pub fn run() -> anyhow::Result<()> {
    let mut bench = Bench::begin("bus")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (name, loopback, keyed) in [
        ("direct, one service", Loopback::Direct, false),
        ("direct, each about a resource", Loopback::Direct, true),
        ("written and read, one service", Loopback::Broker, false),
    ] {
        let target = if loopback == Loopback::Direct { "at least 500,000" } else { "" };
        let calls = if loopback == Loopback::Direct { CALLS } else { CALLS / 10 };
        let took = runtime.block_on(measure(loopback, keyed, calls))?;
        bench.figure(format!("request-replies a second, {name}"), calls as f64 / took.as_secs_f64(), "1/s", target);
    }
    super::bus_broker::run(&mut bench)?;
    bench.end()
}

async fn measure(loopback: Loopback, keyed: bool, calls: u64) -> anyhow::Result<Duration> {
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
    for window in 0..calls / WINDOW {
        let about = |n| keyed.then(|| Uuid::from_u64_pair(window, n));
        let messages = (0..WINDOW).map(|n| Add { a: n, b: 1, about: about(n) }).collect();
        for reply in bus.call_all(&cx, WINDOW as usize, messages).await {
            sum += reply?;
        }
    }
    let took = begin.elapsed();
    anyhow::ensure!(sum == calls / WINDOW * (WINDOW * (WINDOW - 1) / 2 + WINDOW), "the sum is wrong: {sum}");
    stop.cancel();
    Ok(took)
}
