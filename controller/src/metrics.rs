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

    /// All figures as they are now.
    #[must_use]
    pub fn render(&self) -> String {
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
    pub fn total(&self, name: &'static str, labels: &[(&'static str, &str)], value: u64) {
        self.recorder.register_counter(&key(name, labels), &META).absolute(value);
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
