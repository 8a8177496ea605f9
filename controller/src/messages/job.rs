//! Messages of the job service.

use serde::{Deserialize, Serialize};
use shared::api::job::Job;
use shared::id::{JobId, ResourceId};
use uuid::Uuid;

use super::{changes, reads};
use crate::auth::Action;
use crate::bus::{ApiRequest, request};

reads!("job", "job.GetJob" => GetJob(JobId), "job.ListJobs" => ListJobs, Job, Read);
changes!(
    /// Asks a job to stop and to undo what it has done. Answers the job; it ends some time after.
    "job.CancelJob" to "job" => Job, CancelJob(JobId), Write
);

/// Waits until a job has ended, or until the deadline of the call; answers the job as it is then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitJob {
    /// Which.
    pub id: JobId,
}
request!("job.WaitJob" to "job" => Job, WaitJob);
impl ApiRequest for WaitJob {
    const ACTION: Action = Action::Read;
    fn subject(&self) -> Option<(&'static str, Uuid)> {
        Some(("job", self.id.uuid()))
    }
}

/// Tells the engine that runs a job to stop it: whoever sends this has written down that a user wants
/// so. Goes to the owner of what the job works on, since jobs run there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopJob {
    /// Which.
    pub id: JobId,
    /// What it works on.
    pub resource: Uuid,
}
request!("job.StopJob" to "job" => (), StopJob, about |m| m.resource);

/// Asks a certain controller to answer when a job has ended or left it, or when the time is nearly over. What the
/// job is then, the database says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchJob {
    /// Which.
    pub id: JobId,
}
request!("job.WatchJob" to "job" => (), WatchJob);
