//! Spans as OTLP has them in JSON (`POST /v1/traces`): ids in hexadecimal, 64-bit numbers as text.

use std::time::Instant;

use serde_json::{Value as Json, json};

use crate::span::{Finished, Kind, Value};

/// Who made the spans.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub service: &'static str,
    pub instance: String,
    pub version: &'static str,
}

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchor {
    pub at: Instant,
    pub unix_ns: i128,
}

impl Anchor {
    fn unix_ns(&self, moment: Instant) -> i128 {
        match moment.checked_duration_since(self.at) {
            Some(after) => self.unix_ns + after.as_nanos().cast_signed(),
            None => self.unix_ns - self.at.duration_since(moment).as_nanos().cast_signed(),
        }
    }
}

/// One request's body.
pub(crate) fn body(resource: &Resource, anchor: &Anchor, spans: &[Finished]) -> Json {
    let attributes = [
        ("service.name", resource.service.to_string()),
        ("service.version", resource.version.to_string()),
        ("service.instance.id", resource.instance.clone()),
    ];
    let attributes: Vec<Json> = attributes.into_iter().map(|(key, text)| attribute(key, &Value::Text(text))).collect();
    let spans: Vec<Json> = spans.iter().map(|span| one(span, anchor)).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": attributes },
        "scopeSpans": [{ "scope": { "name": "kring", "version": resource.version }, "spans": spans }],
    }] })
}

fn one(span: &Finished, anchor: &Anchor) -> Json {
    let kind = match span.kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Client => 3,
    };
    let mut json = json!({
        "traceId": format!("{:032x}", span.trace.trace_id),
        "spanId": format!("{:016x}", span.trace.span_id),
        "name": span.name,
        "kind": kind,
        "flags": 1,
        "startTimeUnixNano": anchor.unix_ns(span.began).to_string(),
        "endTimeUnixNano": anchor.unix_ns(span.ended).to_string(),
        "attributes": span.attributes.iter().map(|(key, value)| attribute(key, value)).collect::<Vec<_>>(),
    });
    if span.parent != 0 {
        json["parentSpanId"] = format!("{:016x}", span.parent).into();
    }
    if let Some(error) = &span.error {
        json["status"] = json!({ "code": 2, "message": error });
    }
    json
}

fn attribute(key: &str, value: &Value) -> Json {
    match value {
        Value::Text(text) => json!({ "key": key, "value": { "stringValue": text } }),
        Value::Number(number) => json!({ "key": key, "value": { "intValue": number.to_string() } }),
    }
}
