//! Jobs: accepted work.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::Links;
use crate::error::Error;
use crate::id::{AccountId, JobId};
pub use crate::state::job::JobState;
use crate::time::Timestamp;

/// The resource that a job works on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobResource {
    /// Its noun, such as `vm`.
    pub kind: String,
    /// Its id.
    pub id: Uuid,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does, such as `vm.create`.
    pub kind: String,
    /// How far it is.
    pub state: JobState,
    /// Whether a cancellation was asked for.
    pub cancel_requested: bool,
    /// Percent done, 0 to 100.
    pub progress: u8,
    /// The step it is in, or the one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// All its steps, in order.
    pub steps: Vec<String>,
    /// The resource that it works on.
    pub resource: JobResource,
    /// Who asked.
    pub account_id: AccountId,
    /// The request that asked.
    pub request_id: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Steps that were undone, in the order of undoing.
    #[serde(default)]
    pub rolled_back: Vec<String>,
    /// Steps whose undoing is still owed; it is tried until it succeeds.
    #[serde(default)]
    pub cleanup_owed: Vec<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// When it is given up and rolled back.
    pub deadline_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// The answer to a mutation: where its work is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobRef {
    /// The job.
    pub job_id: JobId,
    /// The resource that it works on.
    pub resource: JobResource,
}
