//! What an operation is given about the task that it works for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::id::TaskId;
use shared::{Code, Error};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The task that an operation works for: its deadline, its cancellation, its progress.
#[derive(Clone, Debug)]
pub struct TaskCx {
    /// The task.
    pub task_id: TaskId,
    /// When the command is given up. Everything that is awaited on its behalf ends by then.
    pub deadline: Instant,
    /// Cancelled when a controller cancels the task, when the deadline passes, or when the agent stops.
    pub cancel: CancellationToken,
    generation: Arc<AtomicU64>,
    progress: Arc<Mutex<Progress>>,
}

/// How far a task is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// What it does just now, in words.
    pub doing: String,
}

impl TaskCx {
    /// A context that nothing cancels but `cancel` and whose progress nobody has asked for yet.
    #[must_use]
    pub fn new(task_id: TaskId, generation: u64, deadline: Instant, cancel: CancellationToken) -> Self {
        Self { task_id, deadline, cancel, generation: Arc::new(AtomicU64::new(generation)), progress: Arc::default() }
    }

    /// Ring generation of the command; recorded in the metadata of a domain that it changes. It rises
    /// when the command is repeated by the resource's next owner.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The command was repeated under this generation.
    pub(super) fn raise_generation(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::SeqCst);
    }

    /// Says how far the task is. Cheap: it is sent on about once a second at most.
    pub fn progress(&self, percent: u8, doing: &str) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.percent = percent.min(100);
        if progress.doing != doing {
            progress.doing = doing.to_string();
        }
    }

    /// How far the task said it is.
    #[must_use]
    pub fn progress_now(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Time until the deadline; zero when it has passed.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// An error when the task is cancelled or its deadline has passed: asked between steps.
    ///
    /// # Errors
    /// `deadline_exceeded` or `cancelled`.
    pub fn check(&self) -> Result<(), Error> {
        if self.left().is_zero() {
            Err(Error::new(Code::DeadlineExceeded, "the deadline has passed before the host had done the work"))
        } else if self.cancel.is_cancelled() {
            Err(Error::new(Code::Cancelled, "the work on the host was cancelled"))
        } else {
            Ok(())
        }
    }

    /// Sleeps, unless the task is cancelled or late before.
    ///
    /// # Errors
    /// `deadline_exceeded` and `cancelled`.
    pub async fn sleep(&self, duration: Duration) -> Result<(), Error> {
        let sleep = async {
            tokio::time::sleep(duration).await;
            Ok::<_, Error>(())
        };
        self.until_cancelled(sleep).await
    }

    /// Runs `work` until it is done, the task is cancelled or the deadline passes, whichever is first.
    ///
    /// # Errors
    /// Those of `work`, `deadline_exceeded` and `cancelled`.
    pub async fn until_cancelled<T, E: Into<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        tokio::select! {
            result = work => result.map_err(Into::into),
            () = self.cancel.cancelled() => {
                self.check()?;
                Err(Error::new(Code::Cancelled, "the work on the host was cancelled"))
            }
            () = tokio::time::sleep_until(self.deadline) => {
                Err(Error::new(Code::DeadlineExceeded, "the deadline has passed before the host had done the work"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cancelled_task_says_so_and_a_late_one_too() {
        let cx = TaskCx::new(TaskId::new(), 1, Instant::now() + Duration::from_secs(60), CancellationToken::new());
        cx.progress(250, "works");
        assert_eq!(cx.progress_now(), Progress { percent: 100, doing: "works".into() });
        assert!(cx.check().is_ok());
        cx.cancel.cancel();
        let endless = cx.until_cancelled(std::future::pending::<Result<(), Error>>()).await;
        assert_eq!(endless.unwrap_err().code, Code::Cancelled);
        let late = TaskCx::new(TaskId::new(), 1, Instant::now(), CancellationToken::new());
        assert_eq!(late.check().unwrap_err().code, Code::DeadlineExceeded);
    }
}
