//! The context of a call: who asked, until when, under which request and trace.
//!
//! It is made once, at the gateway or by a reconciler, and inherited by every message and command
//! that follows from it. A deadline may only become shorter on the way.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::id::AccountId;
use shared::{Code, Error};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

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

/// W3C trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The whole trace.
    pub trace_id: u128,
    /// The span that caused this one.
    pub span_id: u64,
}

impl Trace {
    /// A new trace.
    #[must_use]
    pub fn new() -> Self {
        Self { trace_id: rand::random::<u128>().max(1), span_id: rand::random::<u64>().max(1) }
    }

    /// Reads a `traceparent` header.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        Some(Self { trace_id, span_id })
    }

    /// Writes a `traceparent` header.
    #[must_use]
    pub fn header(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace_id, self.span_id)
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
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
    /// A context for work that Kring does by itself.
    #[must_use]
    pub fn system(timeout: Duration) -> Self {
        Self {
            caller: Caller::System,
            deadline: Instant::now() + timeout,
            request_id: Arc::from(Uuid::now_v7().to_string()),
            trace: Trace::new(),
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

    #[test]
    fn a_trace_round_trips_and_nonsense_is_ignored() {
        let trace = Trace::new();
        assert_eq!(Trace::parse(&trace.header()), Some(trace));
        for bad in ["", "00", "00-0-0-01", "ff-00000000000000000000000000000001-0000000000000001-01", "zz-é"] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_only_shrinks() {
        let cx = Cx::system(Duration::from_secs(10));
        assert_eq!(cx.within(Duration::from_secs(60)).deadline, cx.deadline);
        assert_eq!(cx.within(Duration::from_secs(1)).left(), Ok(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(cx.left().unwrap_err().code, Code::DeadlineExceeded);
    }
}
