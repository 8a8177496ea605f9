//! A message as it is written on a wire: JSON with one outer key, the message's full type name.
//!
//! ```json
//! {"vm.StartVm": {"id": "…", "service_id": "vm", "created_at": 1764000000123, "timeout_ms": 30000,
//!                 "headers": {"correlation": null, "reply_to": "…", …}, "body": {…}}}
//! ```

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use shared::id::ControllerId;
use shared::{Code, Error};
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bus::message::Message;
use crate::cx::{Caller, Cx, Idempotency, Trace};

/// What goes with every message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headers {
    /// Id of the request that this answers or belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Uuid>,
    /// Controller that waits for the reply; absent for one that is not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<ControllerId>,
    /// Who asks.
    pub caller: Caller,
    /// The request's id.
    pub request_id: String,
    /// W3C `traceparent`.
    pub traceparent: String,
    /// Ring generation of the sender.
    pub generation: u64,
    /// The client's promise about repetitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Idempotency>,
    /// Whether to say what would happen instead of doing it.
    #[serde(default)]
    pub dry_run: bool,
}

/// A message and what goes with it. The body stays as it was written until its type is known.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Full type name of the body.
    pub name: String,
    /// Id of this message.
    pub id: Uuid,
    /// The service that it is for.
    pub service_id: String,
    /// When it was made, in milliseconds since the epoch.
    pub created_at: i64,
    /// How long it may take, counted from when it is received.
    pub timeout_ms: u64,
    /// What goes with it.
    pub headers: Headers,
    /// The message.
    pub body: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Inner<S, H, B> {
    id: Uuid,
    service_id: S,
    created_at: i64,
    timeout_ms: u64,
    headers: H,
    body: B,
}

impl Envelope {
    /// Wraps `message` for `service`, with what is left of the deadline of `cx`.
    pub fn wrap<M: Message>(cx: &Cx, service: &str, message: &M, generation: u64, now_ms: i64) -> Result<Self, Error> {
        Ok(Self {
            name: M::NAME.to_string(),
            id: Uuid::now_v7(),
            service_id: service.to_string(),
            created_at: now_ms,
            timeout_ms: u64::try_from(cx.left()?.as_millis()).unwrap_or(u64::MAX),
            headers: Headers {
                correlation: None,
                reply_to: None,
                caller: cx.caller,
                request_id: cx.request_id.to_string(),
                traceparent: cx.trace.header(),
                generation,
                idempotency: cx.idempotency.as_deref().cloned(),
                dry_run: cx.dry_run,
            },
            body: to_raw(message)?,
        })
    }

    /// The context that the receiver handles it in.
    #[must_use]
    pub fn cx(&self) -> Cx {
        Cx {
            caller: self.headers.caller,
            deadline: Instant::now() + Duration::from_millis(self.timeout_ms.min(7 * 24 * 3600 * 1000)),
            request_id: self.headers.request_id.as_str().into(),
            trace: Trace::parse(&self.headers.traceparent).unwrap_or_default(),
            idempotency: self.headers.idempotency.clone().map(Into::into),
            dry_run: self.headers.dry_run,
            cancelled: CancellationToken::new(),
        }
    }

    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|e| Error::internal(format_args!("a message could not be written: {e}")))
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(bytes).map_err(|e| {
            Error::new(Code::UnknownMessage, "a message on the bus could not be read").with_detail(e.to_string())
        })
    }
}

/// Writes any part of a message.
pub fn to_raw<T: Serialize>(value: &T) -> Result<Box<RawValue>, Error> {
    serde_json::value::to_raw_value(value)
        .map_err(|e| Error::internal(format_args!("a message could not be written: {e}")))
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry(
            &self.name,
            &Inner {
                id: self.id,
                service_id: &self.service_id,
                created_at: self.created_at,
                timeout_ms: self.timeout_ms,
                headers: &self.headers,
                body: &self.body,
            },
        )?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct OneKey;
        impl<'de> Visitor<'de> for OneKey {
            type Value = Envelope;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one key, the name of the message")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope, A::Error> {
                let (name, inner): (String, Inner<String, Headers, Box<RawValue>>) =
                    map.next_entry()?.ok_or_else(|| de::Error::custom("an empty message"))?;
                if map.next_key::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::custom("more than one message in an envelope"));
                }
                Ok(Envelope {
                    name,
                    id: inner.id,
                    service_id: inner.service_id,
                    created_at: inner.created_at,
                    timeout_ms: inner.timeout_ms,
                    headers: inner.headers,
                    body: inner.body,
                })
            }
        }
        d.deserialize_map(OneKey)
    }
}
