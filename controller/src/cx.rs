//! The context of a call: who asked, until when, under which request and trace.
//!
//! It is made once, at the gateway or by a reconciler, and inherited by every message and command
//! that follows from it. A deadline may only become shorter on the way.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::id::AccountId;
use shared::{Code, Error};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trace::Span;
use uuid::Uuid;

pub use trace::Trace;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Caller {
    /// Kring itself: a reconciler, a recovery.
    System,
    /// An account, through the API.
    Account {
        /// The account.
        id: AccountId,
        /// Whether it may act on every resource.
        admin: bool,
    },
}

impl Caller {
    /// The account that new resources belong to.
    #[must_use]
    pub const fn account(&self) -> Option<AccountId> {
        match self {
            Self::System => None,
            Self::Account { id, .. } => Some(*id),
        }
    }

    /// The account whose resources it sees in lists; `None`: all.
    #[must_use]
    pub const fn scope(&self) -> Option<AccountId> {
        if self.is_admin() { None } else { self.account() }
    }

    /// Whether it may act on every resource.
    #[must_use]
    pub const fn is_admin(&self) -> bool {
        match self {
            Self::System => true,
            Self::Account { admin, .. } => *admin,
        }
    }
}

/// A client's promise that two requests with this key are one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The `Idempotency-Key`.
    pub key: String,
    /// Hash of the method, the path and the body.
    pub request_hash: String,
}

/// The context of a call. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Cx {
    /// Who asks.
    pub caller: Caller,
    /// When the call is given up.
    pub deadline: Instant,
    /// The request's id, in every log line and answer.
    pub request_id: Arc<str>,
    /// The trace that this call is a part of.
    pub trace: Trace,
    /// The client's promise about repetitions.
    pub idempotency: Option<Arc<Idempotency>>,
    /// Whether to say what would happen instead of doing it.
    pub dry_run: bool,
    /// Fires when nobody waits for the answer any more. A handler that only waits stops then; one that
    /// changes something ignores it, because what was accepted is carried out.
    pub cancelled: CancellationToken,
}

impl Cx {
    /// A context for work that Kring does by itself; it belongs to the request that is being worked on,
    /// if there is one.
    #[must_use]
    pub fn system(timeout: Duration) -> Self {
        let (request_id, trace) = match trace::current() {
            Some(scope) => (scope.request_id, scope.trace),
            None => (Arc::from(Uuid::now_v7().to_string()), Trace::new()),
        };
        Self {
            caller: Caller::System,
            deadline: Instant::now() + timeout,
            request_id,
            trace,
            idempotency: None,
            dry_run: false,
            cancelled: CancellationToken::new(),
        }
    }

    /// Time left; an error when there is none.
    pub fn left(&self) -> Result<Duration, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the work began"))
        } else {
            Ok(left)
        }
    }

    /// The same call, caused by this span.
    #[must_use]
    pub fn caused_by<'a>(&'a self, span: &Span) -> Cow<'a, Self> {
        if !span.is_recorded() {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Self { trace: span.trace(), ..self.clone() })
    }

    /// The same call with at most `timeout` left.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        let mut cx = self.clone();
        cx.deadline = cx.deadline.min(Instant::now() + timeout);
        cx
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_only_shrinks() {
        let cx = Cx::system(Duration::from_secs(10));
        assert_eq!(cx.within(Duration::from_secs(60)).deadline, cx.deadline);
        assert_eq!(cx.within(Duration::from_secs(1)).left(), Ok(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(cx.left().unwrap_err().code, Code::DeadlineExceeded);
    }
}
