//! Reconcilers: they bring what is to what should be, over and over.
//!
//! Each is woken by a timer and takes no input: it looks at the database and does what is missing. So
//! the first try, a retry and the repair after a crash are one path.

mod driver;
mod expunge;
mod trim;

pub use driver::{Reconciler, spawn};

use std::sync::Arc;
use std::time::Duration;

use crate::services::{self, Context};
use crate::workflow;

/// Every reconciler of a controller.
#[must_use]
pub fn all(context: &Context) -> Vec<Reconciler> {
    let c = context.clone();
    let jobs = Reconciler::new("jobs", Duration::from_secs(15), move || {
        let engine = Arc::clone(&c.engine);
        async move { engine.recover().await.map(|_| ()) }
    });
    let c = context.clone();
    let cleanup = Reconciler::new("cleanup", Duration::from_secs(1), move || {
        let engine = Arc::clone(&c.engine);
        async move { workflow::run_due(&engine).await.map(|_| ()) }
    });
    let c = context.clone();
    let expunge = Reconciler::new("expunge", Duration::from_secs(10), move || expunge::run(c.clone()));
    let c = context.clone();
    let trim = Reconciler::new("trim", Duration::from_secs(60), move || trim::run(c.clone()));
    let c = context.clone();
    let uploads = Reconciler::new("uploads", Duration::from_secs(3600), move || {
        let c = c.clone();
        async move { services::image::sweep_uploads(&c).await }
    });
    let c = context.clone();
    let statistics = Reconciler::new("statistics", Duration::from_secs(3600), move || {
        let c = c.clone();
        async move { Ok(c.deps.db.refresh_statistics().await?) }
    });
    let c = context.clone();
    let report = Reconciler::new("report", Duration::from_secs(5), move || services::controller::report(c.clone()));
    vec![jobs, cleanup, expunge, trim, uploads, statistics, report]
}
