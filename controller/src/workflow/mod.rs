//! Durable work: flows of steps, each with an undo, journalled in the job's row.
//!
//! - [`flow`]: what a flow and a step are.
//! - [`course`]: where a job is and what comes next, as rules without I/O.
//! - [`engine`]: accepts jobs, runs their steps, rolls back, resumes after a crash.
//! - [`run`]: one job, forward or backward. - [`journal`]: what it writes down on the way.
//! - [`cleanup`]: undoing that failed and is owed.
//!
//! A job is accepted and its first step recorded in one transaction, before `202` is sent. Between two
//! steps the journal is written together with what the step records, so a crash at any instant is
//! followed by running the same step again: steps may be applied twice and undone twice.

mod cleanup;
pub mod course;
mod engine;
mod flow;
mod journal;
mod run;

pub use cleanup::run_due;
pub use engine::{Engine, Flows, Watched};
pub use flow::{At, Flow, Point, Probe, Step, StepCx};

#[cfg(test)]
mod tests;
