//! One trace from an API call over the bus to the agents and back.
//!
//! - [`ids`]: W3C trace context, as it travels in `traceparent`.
//! - [`scope`]: which request and trace the running work belongs to; log lines carry it.
//! - [`span`]: a piece of work with its times, made only when spans are exported.
//! - [`export`]: a bounded queue and a loop that posts spans to a collector by OTLP (HTTP, JSON).
//! - [`log`]: how the ids get into log lines.
//!
//! Nothing is made, queued or sent unless an endpoint is configured: a span then is one atomic read.

pub mod export;
pub mod ids;
pub mod log;
mod otlp;
pub mod scope;
pub mod span;
#[cfg(feature = "testing")]
pub mod testing;

pub use export::{Exporter, Figures, Options, figures, start};
pub use ids::Trace;
pub use scope::{Scope, current, parent, within, within_any};
pub use span::{Kind, Span};
