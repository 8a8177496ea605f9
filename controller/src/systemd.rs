//! What systemd is told: ready, status, alive, stopping. Everything here does nothing when another
//! service manager, or nobody, runs the controller.

use std::time::Duration;

use systemd::daemon::{STATE_READY, STATE_STATUS, STATE_STOPPING, STATE_WATCHDOG};
use tokio_util::sync::CancellationToken;

/// Whether what this process prints ends in the journal, where secrets have no place.
#[must_use]
pub fn prints_to_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}

/// Says that the controller serves.
pub fn ready(status: &str) {
    tell(&[(STATE_READY, "1"), (STATE_STATUS, status)]);
}

/// Says that the controller stops.
pub fn stopping(status: &str) {
    tell(&[(STATE_STOPPING, "1"), (STATE_STATUS, status)]);
}

/// Feeds the watchdog until `stop`, while `progress` goes on counting. It runs on the runtime that
/// everything else runs on, and counts what the heartbeat's thread does: when either of them stands
/// still, the watchdog starves and systemd starts the controller anew. A database that does not answer
/// is no reason to: the heartbeat counts its failures as well.
pub async fn feed_watchdog(progress: impl Fn() -> u64 + Send, stop: CancellationToken) {
    let Ok(us @ 1..) = systemd::daemon::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(Duration::from_micros(us) / 2);
    let mut meter = Meter::default();
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if meter.moved(progress()) {
            tell(&[(STATE_WATCHDOG, "1")]);
        } else {
            tracing::warn!("the heartbeat stands still: the watchdog is not fed");
        }
    }
}

/// Whether a count went on since it was last looked at.
#[derive(Default)]
struct Meter(Option<u64>);

impl Meter {
    fn moved(&mut self, count: u64) -> bool {
        self.0.replace(count) != Some(count)
    }
}

fn tell(states: &[(&str, &str)]) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // A line break would begin another state.
    let clean: Vec<(&str, String)> = states.iter().map(|(k, v)| (*k, v.replace(['\n', '\0'], " "))).collect();
    if let Err(error) = systemd::daemon::notify(clean.iter()) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_stands_still_is_no_progress() {
        let mut meter = Meter::default();
        let fed: Vec<bool> = [0, 1, 1, 1, 5, 5].into_iter().map(|count| meter.moved(count)).collect();
        assert_eq!(fed, [true, true, false, false, true, false]);
    }
}
