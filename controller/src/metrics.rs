//! Figures of this process, in the form that Prometheus reads.
//!
//! There is no listener of its own: the gateway serves them. Names begin with `kring_`, and `process_` where
//! Prometheus has a name for it; what is counted elsewhere is read when it is asked for. docs/monitoring.md
//! says what each of them means.

mod process;

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio_util::sync::CancellationToken;

use crate::agent_client::HostFigures;
use crate::bus::Bus;
use crate::db::WriteFigures;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
/// How often collected latencies are folded into their buckets when nobody asks.
const UPKEEP: Duration = Duration::from_secs(5);

static META: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// The figures. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    recorder: std::sync::Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Figures that start at zero.
    #[must_use]
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        // Fails only for an empty list.
        let builder = builder.set_buckets(&BUCKETS).unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        Self { recorder: std::sync::Arc::new(recorder), handle }
    }

    /// Counts one answered request.
    pub fn request(&self, route: &str, status: u16, took: Duration) {
        let route = Label::new("route", route.to_string());
        let status = Label::new("status", status.to_string());
        let count = Key::from_parts("kring_http_requests_total", vec![route.clone(), status]);
        self.recorder.register_counter(&count, &META).increment(1);
        let latency = Key::from_parts("kring_http_request_seconds", vec![route]);
        self.recorder.register_histogram(&latency, &META).record(took.as_secs_f64());
    }

    /// Adds `n` to a counter, such as `kring_jobs_total` with `kind` and `state`.
    pub fn count(&self, name: &'static str, labels: &[(&'static str, &str)], n: u64) {
        self.recorder.register_counter(&key(name, labels), &META).increment(n);
    }

    /// Sets a gauge.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus knows only floating-point numbers")]
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)], value: u64) {
        self.recorder.register_gauge(&key(name, labels), &META).set(value as f64);
    }

    /// All figures, those of bus, hosts and database as they are now.
    #[must_use]
    pub fn render(&self, bus: &Bus, hosts: HostFigures, db: WriteFigures) -> String {
        for (name, service) in bus.services() {
            let figures = service.stats.figures();
            let labels = [("service", name)];
            self.gauge("kring_bus_queued", &labels, figures.queued);
            self.gauge("kring_bus_in_flight", &labels, figures.in_flight);
            self.recorder.register_counter(&key("kring_bus_handled_total", &labels), &META).absolute(figures.handled);
            self.recorder.register_counter(&key("kring_bus_failed_total", &labels), &META).absolute(figures.failed);
        }
        self.gauge("kring_host_breakers_open", &[], hosts.open);
        self.gauge("kring_host_commands", &[], hosts.commands);
        self.total("kring_host_breakers_opened_total", hosts.opened);
        self.total("kring_host_commands_refused_total", hosts.refused);
        self.total("kring_host_requests_total", hosts.requests);
        self.total("kring_host_connections_total", hosts.connections);
        self.total("kring_db_writes_total", db.writes);
        self.total("kring_db_commits_total", db.commits);
        self.total("kring_db_commit_microseconds_total", u64::try_from(db.committing.as_micros()).unwrap_or(u64::MAX));
        if let Some(spans) = trace::figures() {
            self.total("kring_trace_spans_sent_total", spans.sent);
            self.total("kring_trace_spans_dropped_total", spans.dropped);
        }
        let (resources, waiting) = bus.queue_sizes();
        self.gauge("kring_bus_busy_resources", &[], resources as u64);
        self.gauge("kring_bus_waiting_messages", &[], waiting as u64);
        let broker = bus.transport().health();
        if broker.broker {
            self.gauge("kring_bus_broker_connected", &[], u64::from(broker.connected));
            self.gauge("kring_bus_broker_blocked", &[], u64::from(broker.blocked));
            self.total("kring_bus_broker_reconnects_total", broker.reconnects);
        }
        self.process();
        self.handle.render()
    }

    /// What the kernel says of this process. What it does not say is left out.
    fn process(&self) {
        self.gauge("kring_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        for (name, value) in process::figures() {
            self.recorder.register_gauge(&key(name, &[]), &META).set(value);
        }
    }

    /// Sets a counter that is kept elsewhere.
    fn total(&self, name: &'static str, value: u64) {
        self.recorder.register_counter(&key(name, &[]), &META).absolute(value);
    }

    /// Folds latencies into their buckets until `stop`, so that they take no memory while nobody asks.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
            self.handle.run_upkeep();
        }
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    Key::from_parts(
        name,
        labels.iter().map(|(name, value)| Label::new(*name, (*value).to_string())).collect::<Vec<_>>(),
    )
}
