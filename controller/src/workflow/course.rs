//! Where a job is on its way, and what comes next: the rules of the journal, without any I/O. The engine
//! follows them ([`super::run`]), and so does the simulation.
//!
//! ```text
//! apply 1 ─▶ apply 2 ─▶ … ─▶ apply n ─▶ succeeded
//!    │ fails     │ fails          │ fails
//!    ▼           ▼                ▼
//! undo 1 ◀── undo 2 ◀── … ◀── undo n           undo 0 ─▶ failed | cancelled
//! ```
//!
//! Each arrow is one write of the journal; a course is what such a write says. Whoever takes up a job reads
//! the course from its row ([`Course::resume`]) and does the next thing once more: it may have been done.

use shared::Code;
use shared::id::ControllerId;
use shared::state::job::JobState;

/// Tries of a step or of its undoing, when the failure may pass by itself.
const ATTEMPTS: u32 = 4;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    steps: usize,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Forward { next: usize },
    Backward { next: usize, failed: usize },
    Ended { state: JobState, step: usize },
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// This step is applied.
    Apply(usize),
    /// Everything was recorded when the job was accepted: only its end is left to be written.
    Close,
    /// This step is undone.
    Undo(usize),
    /// Nothing: the job has ended.
    Nothing,
}

impl Course {
    /// The course of a job of this many steps whose row says `state` and `step`, with so many of its steps
    /// `undone` or owed.
    #[must_use]
    pub const fn resume(steps: usize, state: JobState, step: usize, undone: usize) -> Self {
        let place = match state {
            JobState::Queued | JobState::Running => Place::Forward { next: step },
            JobState::RollingBack => Place::Backward { next: step, failed: step + undone },
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => Place::Ended { state, step },
        };
        Self { steps, place }
    }

    /// What comes next.
    #[must_use]
    pub const fn todo(self) -> Todo {
        match self.place {
            Place::Forward { next } if next < self.steps => Todo::Apply(next),
            Place::Forward { .. } => Todo::Close,
            Place::Backward { next, .. } if next < self.steps => Todo::Undo(next),
            // A course that failed after its last step begins with undoing that.
            Place::Backward { .. } if self.steps > 0 => Todo::Undo(self.steps - 1),
            Place::Backward { .. } | Place::Ended { .. } => Todo::Nothing,
        }
    }

    /// The next step is applied and recorded; the last one ends the job.
    #[must_use]
    pub const fn applied(self) -> Self {
        let next = match self.todo() {
            Todo::Apply(index) => index + 1,
            Todo::Close => self.steps,
            Todo::Undo(_) | Todo::Nothing => return self,
        };
        let place = if next == self.steps {
            Place::Ended { state: JobState::Succeeded, step: next }
        } else {
            Place::Forward { next }
        };
        Self { place, ..self }
    }

    /// The next step has failed for good: it is undone first, for it may have half happened.
    #[must_use]
    pub const fn failed(self) -> Self {
        match self.place {
            Place::Forward { next } => Self { place: Place::Backward { next, failed: next }, ..self },
            Place::Backward { .. } | Place::Ended { .. } => self,
        }
    }

    /// The next step is undone, or its undoing is owed; the first one ends the job.
    #[must_use]
    pub const fn undone(self, cancelled: bool) -> Self {
        let (Todo::Undo(index), Place::Backward { failed, .. }) = (self.todo(), self.place) else { return self };
        let place = match index {
            0 if cancelled => Place::Ended { state: JobState::Cancelled, step: failed },
            0 => Place::Ended { state: JobState::Failed, step: failed },
            _ => Place::Backward { next: index - 1, failed },
        };
        Self { place, ..self }
    }

    /// The state that the job's row has.
    #[must_use]
    pub const fn state(self) -> JobState {
        match self.place {
            Place::Forward { .. } => JobState::Running,
            Place::Backward { .. } => JobState::RollingBack,
            Place::Ended { state, .. } => state,
        }
    }

    /// The step that the job's row has: the next one, or the one that failed when the job has ended so.
    #[must_use]
    pub const fn step(self) -> usize {
        match self.place {
            Place::Forward { next } | Place::Backward { next, .. } => next,
            Place::Ended { step, .. } => step,
        }
    }

    /// Percent done; a job that goes back stays at what it had reached.
    #[must_use]
    pub fn progress(self, reached: u8) -> u8 {
        match self.place {
            Place::Forward { next } => u8::try_from(next * 100 / self.steps.max(1)).unwrap_or(100),
            Place::Ended { state: JobState::Succeeded, .. } => 100,
            Place::Backward { .. } | Place::Ended { .. } => reached,
        }
    }
}

/// What follows from a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is tried again, after a pause.
    Again,
    /// Somebody newer has the resource: the job is left to them.
    Leave,
    /// It has failed for good.
    Failed,
}

/// What follows when applying a step has failed with `code`, for the `tries`th time.
#[must_use]
pub fn after_apply(code: Code, tries: u32) -> Verdict {
    match code {
        Code::StaleGeneration => Verdict::Leave,
        code if code.is_transient() && tries < ATTEMPTS => Verdict::Again,
        _ => Verdict::Failed,
    }
}

/// What follows when undoing a step has failed with `code`, for the `tries`th time.
#[must_use]
pub fn after_undo(code: Code, tries: u32) -> Verdict {
    match code {
        Code::StaleGeneration => Verdict::Leave,
        _ if tries < ATTEMPTS => Verdict::Again,
        _ => Verdict::Failed,
    }
}

/// What is to be done about a job that has not ended, by a controller that comes across its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Its resource is owned here: it is run.
    TakeUp,
    /// Its row says that it is run here, but it is not, and its resource belongs to another controller, which
    /// waits to be let have it. That is so when the answer of a write was lost: to the transaction that
    /// accepted or claimed it, or to the one that let go of it.
    LetGo,
    /// It is another controller's business, or stops here by itself.
    Nothing,
}

/// What is to be done about a job whose row names `holder`, by the controller `me`. `owned`: its resource is
/// owned here; `here`: it is in a lane here.
#[must_use]
pub fn look(holder: Option<ControllerId>, me: ControllerId, owned: bool, here: bool) -> Look {
    match (owned, here) {
        (true, _) => Look::TakeUp,
        (false, false) if holder == Some(me) => Look::LetGo,
        (false, _) => Look::Nothing,
    }
}

/// Whether a job's row, written last by `writer` under `written`, must be claimed before `me` runs it under
/// `generation`: whoever else has read it cannot write to it from then on.
#[must_use]
pub fn must_claim(written: u64, writer: Option<ControllerId>, me: ControllerId, generation: u64) -> bool {
    (written, writer) != (generation, Some(me))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every course from its begin, failing at `fail` when there is such a step.
    fn walk(steps: usize, fail: Option<usize>, cancelled: bool) -> Vec<(JobState, usize)> {
        let mut course = Course::resume(steps, JobState::Queued, 0, 0);
        let (mut seen, mut undone) = (Vec::new(), 0);
        loop {
            course = match course.todo() {
                Todo::Apply(index) if Some(index) == fail => course.failed(),
                Todo::Apply(_) | Todo::Close => course.applied(),
                Todo::Undo(_) => {
                    undone += 1;
                    course.undone(cancelled)
                }
                Todo::Nothing => return seen,
            };
            seen.push((course.state(), course.step()));
            let again = Course::resume(steps, course.state(), course.step(), undone);
            assert_eq!(again, course, "what is journalled is the whole course");
        }
    }

    #[test]
    fn a_course_goes_forward_or_all_the_way_back() {
        use JobState::{Cancelled, Failed, RollingBack, Running, Succeeded};
        assert_eq!(walk(3, None, false), [(Running, 1), (Running, 2), (Succeeded, 3)]);
        let back = [(Running, 1), (Running, 2), (RollingBack, 2), (RollingBack, 1), (RollingBack, 0), (Failed, 2)];
        assert_eq!(walk(3, Some(2), false), back);
        assert_eq!(walk(3, Some(0), true), [(RollingBack, 0), (Cancelled, 0)]);
        assert_eq!(walk(0, None, false), [(Succeeded, 0)]);
        assert_eq!(Course::resume(1, Running, 1, 0).todo(), Todo::Close);
    }

    #[test]
    fn progress_is_of_the_steps_and_stays_on_the_way_back() {
        let half = Course::resume(4, JobState::Running, 2, 0);
        assert_eq!((half.progress(0), half.failed().progress(50)), (50, 50));
        assert_eq!(Course::resume(4, JobState::Running, 3, 0).applied().progress(75), 100);
    }

    #[test]
    fn a_job_that_nobody_runs_is_let_go_of() {
        let (me, other) = (ControllerId::new(), ControllerId::new());
        assert_eq!(look(Some(other), me, true, false), Look::TakeUp);
        assert_eq!(look(Some(me), me, false, false), Look::LetGo);
        assert_eq!(look(Some(me), me, false, true), Look::Nothing, "it stops by itself");
        assert_eq!((look(Some(other), me, false, false), look(None, me, false, false)), (Look::Nothing, Look::Nothing));
    }

    #[test]
    fn a_stale_try_is_left_and_others_are_counted() {
        assert_eq!(after_apply(Code::StaleGeneration, 1), Verdict::Leave);
        assert_eq!(after_undo(Code::StaleGeneration, 9), Verdict::Leave);
        assert_eq!(
            (after_apply(Code::Unavailable, 3), after_apply(Code::Unavailable, 4)),
            (Verdict::Again, Verdict::Failed)
        );
        assert_eq!(after_apply(Code::HostFailed, 1), Verdict::Failed, "it would fail again");
        assert_eq!(
            (after_undo(Code::HostFailed, 3), after_undo(Code::HostFailed, 4)),
            (Verdict::Again, Verdict::Failed)
        );
    }
}
