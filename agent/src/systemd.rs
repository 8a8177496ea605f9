//! What systemd is told: ready, status, alive, stopping, and log lines. Everything here does nothing
//! when another service manager, or nobody, runs the agent.

use std::sync::Arc;
use std::time::Duration;

use systemd::daemon::{STATE_READY, STATE_STATUS, STATE_STOPPING, STATE_WATCHDOG};

use crate::app::App;
use crate::log::Entry;

/// How often the status line is brought up to date when no watchdog asks for more.
const STATUS_EVERY: Duration = Duration::from_secs(30);

/// Whether standard error goes to the journal anyway, so that the journal can be given fields.
#[must_use]
pub fn has_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Whether this host's systemd has the agent's unit, as the packages install it.
#[must_use]
pub fn has_unit() -> bool {
    let here = |dir: &&str| std::path::Path::new(dir).join("kring-agent.service").exists();
    std::path::Path::new("/run/systemd/system").is_dir()
        && ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"].iter().any(here)
}

/// Writes one line to the journal.
pub(crate) fn journal(priority: u8, target: &str, entry: Entry) {
    let head = [format!("PRIORITY={priority}"), format!("MESSAGE={}", entry.line), format!("KRING_TARGET={target}")];
    let all: Vec<&str> = head.iter().chain(&entry.fields).map(String::as_str).collect();
    // There is nowhere left to complain to.
    let _ = systemd::journal::send(&all);
}

/// Says that the agent serves.
pub fn ready(app: &App) {
    tell(&[(STATE_READY, "1".to_string()), (STATE_STATUS, status(app))]);
}

/// Says that the agent stops.
pub fn stopping() {
    tell(&[(STATE_STOPPING, "1".to_string()), (STATE_STATUS, "stops".to_string())]);
}

/// Keeps status and watchdog fed until the agent stops. It runs on the same runtime as everything
/// else: when that hangs, the watchdog is not fed.
pub async fn run(app: Arc<App>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = match systemd::daemon::watchdog_enabled() {
        Ok(us @ 1..) => Some(Duration::from_micros(us) / 2),
        _ => None,
    };
    let mut told = status(&app);
    let mut tick = tokio::time::interval(watchdog.unwrap_or(STATUS_EVERY).min(STATUS_EVERY));
    while app.shutdown.run_until_cancelled(tick.tick()).await.is_some() {
        let mut states = Vec::new();
        if watchdog.is_some() {
            states.push((STATE_WATCHDOG, "1".to_string()));
        }
        let now = status(&app);
        if now != told {
            states.push((STATE_STATUS, now.clone()));
            told = now;
        }
        tell(&states);
    }
}

fn status(app: &App) -> String {
    let libvirt = app.hypervisor.summary().err().map(|e| format!("; libvirt: {e}")).unwrap_or_default();
    format!("host {}; {} tasks{libvirt}", app.identity.load().host_id, app.tasks.active())
}

fn tell(states: &[(&str, String)]) {
    if states.is_empty() || std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // A line break would begin another state, and a zero byte cannot be sent.
    let clean: Vec<(&str, String)> = states.iter().map(|(k, v)| (*k, v.replace(['\n', '\0'], " "))).collect();
    if let Err(error) = systemd::daemon::notify(clean.iter()) {
        tracing::debug!(%error, "systemd was not told");
    }
}
