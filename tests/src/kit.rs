//! The workflow kit: breaks a flow at every step in every way, and sees how its job ends.
//!
//! | way | what happens |
//! |---|---|
//! | fail before | the step fails before it has done anything: the job rolls back |
//! | fail after | the step fails after it has done its work: its own undo must take that back |
//! | crash before, crash after | the controller ends there and comes back: the job goes on; *after* means that the step is applied twice |
//! | crash before or after undo | the controller ends while it rolls back; *after* means that the undo runs twice |
//!
//! The first step of a flow is recorded with the acceptance of the job and never applied, so only its
//! undo can be broken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use controller::workflow::{Point, Probe};
use shared::api::job::{Job, JobRef};
use shared::id::JobId;
use shared::{Code, Error};
use tokio::sync::watch;

use crate::cluster::Cluster;

/// A way of breaking a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The step fails before it has done anything.
    FailBefore,
    /// The step fails after it has done its work.
    FailAfter,
    /// The controller ends before the step.
    CrashBefore,
    /// The controller ends after the step, before that is written down.
    CrashAfter,
    /// The step fails, and the controller ends before its undo.
    CrashBeforeUndo,
    /// The step fails, and the controller ends after its undo, before that is written down.
    CrashAfterUndo,
}

/// Every way.
pub const WAYS: &[Way] =
    &[Way::FailBefore, Way::FailAfter, Way::CrashBefore, Way::CrashAfter, Way::CrashBeforeUndo, Way::CrashAfterUndo];

impl Way {
    /// Whether the job must succeed in the end.
    #[must_use]
    pub const fn goes_on(self) -> bool {
        matches!(self, Self::CrashBefore | Self::CrashAfter)
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Fail,
    Hang,
}

#[derive(Default)]
struct Plan {
    kind: &'static str,
    step: String,
    actions: Vec<(Point, Action)>,
}

/// A probe that does what it is told, once for each point, in every life of the controller.
pub struct Saboteur {
    plan: Mutex<Plan>,
    hanging: watch::Sender<bool>,
}

impl Saboteur {
    /// A probe that lets everything pass.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { plan: Mutex::default(), hanging: watch::Sender::new(false) })
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks the next job of this kind at this step.
    pub fn sabotage(&self, kind: &'static str, step: &str, way: Way) {
        use Action::{Fail, Hang};
        let actions = match way {
            Way::FailBefore => vec![(Point::BeforeApply, Fail)],
            Way::FailAfter => vec![(Point::AfterApply, Fail)],
            Way::CrashBefore => vec![(Point::BeforeApply, Hang)],
            Way::CrashAfter => vec![(Point::AfterApply, Hang)],
            Way::CrashBeforeUndo => vec![(Point::AfterApply, Fail), (Point::BeforeUndo, Hang)],
            Way::CrashAfterUndo => vec![(Point::AfterApply, Fail), (Point::AfterUndo, Hang)],
        };
        *self.plan() = Plan { kind, step: step.to_string(), actions };
        self.hanging.send_replace(false);
    }

    /// Lets everything pass from now on. False when something that was planned has not happened.
    pub fn relent(&self) -> bool {
        let done = self.plan().actions.is_empty();
        *self.plan() = Plan::default();
        done
    }

    /// Waits until a job hangs.
    ///
    /// # Errors
    /// When none does in time.
    pub async fn hangs(&self) -> anyhow::Result<()> {
        let mut hanging = self.hanging.subscribe();
        let wait = hanging.wait_for(|hanging| *hanging);
        let waited = tokio::time::timeout(crate::wait::PATIENCE, wait).await;
        anyhow::ensure!(matches!(waited, Ok(Ok(_))), "the job has not come to the step");
        Ok(())
    }
}

#[async_trait]
impl Probe for Saboteur {
    async fn pass(&self, _job: JobId, kind: &'static str, step: &'static str, point: Point) -> shared::Result<()> {
        let action = {
            let mut plan = self.plan();
            if plan.kind != kind || plan.step != step {
                return Ok(());
            }
            // In their order: an undo is only broken after the failure that leads to it.
            match plan.actions.first() {
                Some((at, action)) if *at == point => {
                    let action = *action;
                    plan.actions.remove(0);
                    action
                }
                _ => return Ok(()),
            }
        };
        match action {
            Action::Fail => Err(Error::new(Code::HostFailed, "the kit broke this step")),
            Action::Hang => {
                self.hanging.send_replace(true);
                std::future::pending().await
            }
        }
    }
}

/// Breaks one job of `kind` at `step` in one way and waits for its end; `submit` accepts it.
///
/// A step that is `owed` when it fails cannot be taken back: its job goes on and succeeds.
///
/// # Errors
/// When the job does not end, or otherwise than it must.
pub async fn break_once(
    cluster: &mut Cluster,
    saboteur: &Saboteur,
    (kind, step, way): (&'static str, &str, Way),
    owed: bool,
    submit: impl AsyncFn(&Cluster) -> anyhow::Result<JobRef>,
) -> anyhow::Result<Job> {
    saboteur.sabotage(kind, step, way);
    let accepted = submit(cluster).await?;
    if !matches!(way, Way::FailBefore | Way::FailAfter) {
        saboteur.hangs().await?;
        cluster.restart().await?;
    }
    let job = cluster.api.wait_job(accepted.job_id).await?;
    anyhow::ensure!(saboteur.relent(), "the job has not come to the step");
    let state = job.state.as_str();
    if way.goes_on() || owed {
        anyhow::ensure!(state == "succeeded", "it {state}: {:?}", job.error);
    } else {
        anyhow::ensure!(state == "failed", "it {state}");
        anyhow::ensure!(job.rolled_back.iter().any(|s| s == step), "{step} is not rolled back: {:?}", job.rolled_back);
    }
    Ok(job)
}
