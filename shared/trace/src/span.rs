//! A piece of work with its times. It exists only when spans are exported and its trace is sampled;
//! otherwise it is its trace context and nothing else.

use std::borrow::Cow;
use std::time::Instant;

use crate::export;
use crate::ids::Trace;
use crate::scope;

/// What a span is, as OpenTelemetry has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work of one's own.
    Internal,
    /// Work for a request that came.
    Server,
    /// Waiting for a request that was sent.
    Client,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub trace: Trace,
    /// 0: the trace begins with it.
    pub parent: u64,
    pub name: Cow<'static, str>,
    pub kind: Kind,
    pub began: Instant,
    pub ended: Instant,
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A span; it ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    trace: Trace,
    recorded: Option<Box<Finished>>,
}

impl Span {
    /// A span for a request from outside: under the span that the caller names, or the first of a trace.
    #[must_use]
    pub fn root(caller: Option<Trace>, kind: Kind, name: &'static str) -> Self {
        match caller {
            Some(parent) => Self::begin(parent.child(), parent.span_id, kind, name),
            None => Self::begin(Trace { sampled: export::sample(), ..Trace::new() }, 0, kind, name),
        }
    }

    /// A span under another.
    #[must_use]
    pub fn under(parent: Trace, kind: Kind, name: &'static str) -> Self {
        if !export::is_on() || !parent.sampled {
            return Self { trace: parent, recorded: None };
        }
        Self::begin(parent.child(), parent.span_id, kind, name)
    }

    /// A span under the one whose work is running; nothing when none is.
    #[must_use]
    pub fn child(kind: Kind, name: &'static str) -> Option<Self> {
        if !export::is_on() {
            return None;
        }
        let parent = scope::parent().filter(|parent| parent.sampled)?;
        Some(Self::under(parent, kind, name))
    }

    fn begin(trace: Trace, parent: u64, kind: Kind, name: &'static str) -> Self {
        let recorded = (export::is_on() && trace.sampled).then(|| {
            let now = Instant::now();
            let name = Cow::Borrowed(name);
            Box::new(Finished {
                trace,
                parent,
                name,
                kind,
                began: now,
                ended: now,
                attributes: Vec::new(),
                error: None,
            })
        });
        Self { trace, recorded }
    }

    /// The context of what this span causes.
    #[must_use]
    pub const fn trace(&self) -> Trace {
        self.trace
    }

    /// Whether anybody will see it.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// Gives it a name that is made only when somebody will see it.
    pub fn rename(&mut self, name: impl FnOnce() -> String) {
        if let Some(recorded) = &mut self.recorded {
            recorded.name = Cow::Owned(name());
        }
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(recorded) = &mut self.recorded {
            recorded.attributes.push((key, value.into()));
        }
    }

    /// Adds an attribute whose text is made only when somebody will see it.
    pub fn set_text(&mut self, key: &'static str, value: impl std::fmt::Display) {
        if let Some(recorded) = &mut self.recorded {
            recorded.attributes.push((key, Value::Text(value.to_string())));
        }
    }

    /// Nobody shall see it after all.
    pub fn forget(mut self) {
        self.recorded = None;
    }

    /// Says that the work failed.
    pub fn fail(&mut self, error: impl std::fmt::Display) {
        if let Some(recorded) = &mut self.recorded {
            recorded.error = Some(error.to_string());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(mut finished) = self.recorded.take() {
            finished.ended = Instant::now();
            export::push(*finished);
        }
    }
}

/// Runs `work` as a span under the one whose work is running; its failure is the span's. Without
/// export, or outside of any trace, it is just run. `more` names and describes the span.
pub async fn around<T, E: std::fmt::Display>(
    kind: Kind,
    name: &'static str,
    more: impl FnOnce(&mut Span),
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(mut span) = Span::child(kind, name) else { return work.await };
    more(&mut span);
    let result = scope::under(span.trace(), work).await;
    if let Err(error) = &result {
        span.fail(error);
    }
    result
}
