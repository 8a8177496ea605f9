//! Which request and trace the running work belongs to. Kept beside the task, so that log lines, spans
//! and requests to others find it without being handed it.

use std::sync::Arc;

use crate::ids::Trace;

tokio::task_local! {
    static SCOPE: Scope;
}

/// What work belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Id of the request that caused it.
    pub request_id: Arc<str>,
    /// The trace, and the span whose work this is.
    pub trace: Trace,
}

impl Scope {
    /// The scope that two headers name: `x-request-id` and `traceparent`. `None` without a trace.
    #[must_use]
    pub fn read(request_id: Option<&str>, traceparent: Option<&str>) -> Option<Self> {
        let trace = Trace::parse(traceparent?)?;
        let sane = |id: &&str| id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic());
        Some(Self { request_id: Arc::from(request_id.filter(sane).unwrap_or_default()), trace })
    }
}

/// What the running work belongs to.
#[must_use]
pub fn current() -> Option<Scope> {
    SCOPE.try_with(Clone::clone).ok()
}

/// The span whose work is running.
#[must_use]
pub fn parent() -> Option<Trace> {
    SCOPE.try_with(|scope| scope.trace).ok()
}

/// Runs `work` as a part of this request and trace. What it spawns belongs to nothing unless it is
/// put into a scope again.
pub async fn within<F: Future>(request_id: Arc<str>, trace: Trace, work: F) -> F::Output {
    SCOPE.scope(Scope { request_id, trace }, work).await
}

/// The same for work that may belong to nothing.
pub async fn within_any<F: Future>(scope: Option<Scope>, work: F) -> F::Output {
    match scope {
        Some(scope) => SCOPE.scope(scope, work).await,
        None => work.await,
    }
}

/// The same for work that does not wait.
pub fn at_once<T>(scope: Scope, work: impl FnOnce() -> T) -> T {
    SCOPE.sync_scope(scope, work)
}

/// Runs `work` as the same request's, caused by another span.
pub(crate) async fn under<F: Future>(trace: Trace, work: F) -> F::Output {
    within_any(current().map(|scope| Scope { trace, ..scope }), work).await
}
