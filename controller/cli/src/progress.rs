//! Showing how far work is: a bar on a terminal, a plain line at every change elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use shared::api::job::{Job, JobState};

use crate::output::{note, plain};

/// Work shorter than this is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// The progress of one piece of work.
pub struct Progress {
    label: String,
    since: Instant,
    bar: Option<ProgressBar>,
    terminal: bool,
    said: String,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new(label: &str, since: Instant) -> Self {
        Self { label: plain(label), since, bar: None, terminal: std::io::stderr().is_terminal(), said: String::new() }
    }

    /// Shows how far a job is, when it takes long enough to be worth it.
    pub fn job(&mut self, job: &Job) {
        if self.since.elapsed() < PATIENCE || job.state.is_final() {
            return;
        }
        let step = describe(job);
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| job_bar(&self.label, self.since));
            bar.set_position(u64::from(job.progress.min(100)));
            bar.set_message(step);
        } else {
            self.say(&step, job.progress);
        }
    }

    /// Tells that the connection is lost and tried again.
    pub fn trouble(&mut self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(plain(what));
        } else if self.said != what {
            note(&format!("{}: {}", self.label, plain(what)));
            self.said = what.to_string();
        }
    }

    /// A line on another state or step than the last one. The percentage alone makes no new line: a
    /// log of a long download would be nothing else.
    fn say(&mut self, step: &str, percent: u8) {
        if self.said != step {
            note(&format!("{}: {step} ({percent} %)", self.label));
            self.said = step.to_string();
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The step of a job in words, such as `2/7 volume.clone`.
fn describe(job: &Job) -> String {
    let step = job.step.as_deref().map(plain).unwrap_or_default();
    let place = job.steps.iter().position(|s| Some(s) == job.step.as_ref());
    let at = place.map(|i| format!("{}/{} ", i + 1, job.steps.len())).unwrap_or_default();
    match job.state {
        JobState::Queued => "queued".to_string(),
        JobState::RollingBack if job.cancel_requested => {
            format!("cancelling: {step}").trim_end_matches(": ").to_string()
        }
        JobState::RollingBack => format!("failed, undoing: {step}").trim_end_matches(": ").to_string(),
        _ if step.is_empty() => "starting".to_string(),
        _ => format!("{at}{step}"),
    }
}

fn job_bar(label: &str, since: Instant) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{bar:28}] {pos:>3} %  {wide_msg} {elapsed:>4}")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(label.to_string());
    bar.set_elapsed(since.elapsed());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar for bytes that are sent; nothing when standard error is not a terminal.
pub fn bytes_bar(label: &str, length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let template = "{spinner} {prefix} [{bar:28}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(plain(label));
    bar
}
