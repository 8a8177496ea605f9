//! Log lines with the request and the trace that they belong to: `request.id`, `trace_id`, `span_id`.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::scope::{Scope, current};

/// The ids of the running work by name, as logs have them; none outside of any request.
#[must_use]
pub fn ids() -> Vec<(&'static str, String)> {
    let Some(Scope { request_id, trace }) = current() else { return Vec::new() };
    let mut ids = Vec::with_capacity(3);
    if !request_id.is_empty() {
        ids.push(("request.id", request_id.to_string()));
    }
    ids.push(("trace_id", format!("{:032x}", trace.trace_id)));
    ids.push(("span_id", format!("{:016x}", trace.span_id)));
    ids
}

/// Fields of a line for people, the ids behind them.
#[derive(Debug, Default)]
pub struct TextFields(DefaultFields);

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        self.0.format_fields(writer.by_ref(), fields)?;
        ids().iter().try_for_each(|(name, id)| write!(writer, " {name}={id}"))
    }
}

/// A line of JSON, the ids among its fields.
#[derive(Debug)]
pub struct JsonLines(Format<Json>);

impl Default for JsonLines {
    fn default() -> Self {
        Self(Format::default().json().flatten_event(true))
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
    Format<Json>: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let ids = ids();
        if ids.is_empty() {
            return self.0.format_event(ctx, writer, event);
        }
        let mut line = String::new();
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        match line.trim_end().strip_suffix('}') {
            Some(open) => {
                writer.write_str(open)?;
                for (name, id) in &ids {
                    write!(writer, ",\"{name}\":{}", serde_json::Value::from(id.as_str()))?;
                }
                writer.write_str("}\n")
            }
            None => writer.write_str(&line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::ids::Trace;
    use crate::scope::at_once;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(subscriber: impl Subscriber + Send + Sync, lines: &Lines) -> Vec<String> {
        tracing::subscriber::with_default(subscriber, || {
            let trace = Trace { trace_id: 0xab, span_id: 0xcd, sampled: true };
            at_once(Scope { request_id: "r-1".into(), trace }, || tracing::info!(vm.id = "v1", "inside"));
            tracing::info!("outside");
        });
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap().lines().map(str::to_string).collect()
    }

    #[test]
    fn lines_of_a_request_name_it_and_others_do_not() {
        let lines = Lines::default();
        let sink = lines.clone();
        let text = layer().with_ansi(false).fmt_fields(TextFields::default()).with_writer(move || sink.clone());
        let text = written(tracing_subscriber::registry().with(text), &lines);
        let tail =
            "inside vm.id=\"v1\" request.id=r-1 trace_id=000000000000000000000000000000ab span_id=00000000000000cd";
        assert!(text[0].ends_with(tail), "{}", text[0]);
        assert!(text[1].ends_with("outside"), "{}", text[1]);
    }

    #[test]
    fn lines_of_json_stay_json() {
        let lines = Lines::default();
        let sink = lines.clone();
        let json = layer().json().event_format(JsonLines::default()).with_writer(move || sink.clone());
        let json = written(tracing_subscriber::registry().with(json), &lines);
        let line: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
        assert_eq!((line["message"].as_str(), line["request.id"].as_str()), (Some("inside"), Some("r-1")));
        assert_eq!(line["span_id"], "00000000000000cd");
        assert!(serde_json::from_str::<serde_json::Value>(&json[1]).unwrap().get("trace_id").is_none());
    }
}
