//! Logs: to the journal with their fields when systemd runs the agent, to standard error otherwise.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use trace::log::{JsonLines, TextFields};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt as text};

use crate::config::{LogConfig, LogFormat};

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("[log] filter \"{filter}\" cannot be read: give a level such as info, or info,agent::libvirt=debug")]
pub struct BadFilter {
    filter: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// Starts logging. A second call changes nothing.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(config: &LogConfig) -> Result<(), BadFilter> {
    let filter =
        EnvFilter::try_new(&config.filter).map_err(|source| BadFilter { filter: config.filter.clone(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    let to_stderr = text::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let for_people = || text::layer().fmt_fields(TextFields::default()).with_target(false);
    // It fails when logging is started already: then that is what stays.
    let _ = match config.format {
        LogFormat::Json => registry.with(to_stderr.json().event_format(JsonLines::default())).try_init(),
        LogFormat::Text if crate::systemd::has_journal() => registry.with(Journal).try_init(),
        LogFormat::Text => registry
            .with(for_people().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr))
            .try_init(),
    };
    Ok(())
}

/// An error with its causes on one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |mut line, cause| {
        let cause = cause.to_string();
        if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
        line
    })
}

/// Writes events to the journal: the line for people, and each field as a field of the journal.
struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        trace::log::ids().into_iter().for_each(|(name, id)| entry.put(name, &id));
        crate::systemd::journal(priority(*event.metadata().level()), event.metadata().target(), entry);
    }
}

/// syslog's number of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// One line with its fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The message, with the fields behind it.
    pub line: String,
    /// `NAME=value`, named as the journal allows.
    pub fields: Vec<String>,
}

impl Entry {
    fn put(&mut self, name: &str, value: &str) {
        if name == "message" {
            self.line.insert_str(0, value);
            return;
        }
        // Writing to a string cannot fail.
        let _ = write!(self.line, " {name}={value}");
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        self.fields.push(format!("KRING_{}={value}", name.to_ascii_uppercase()));
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Keep(Arc<Mutex<Vec<Entry>>>);

    impl<S: Subscriber> Layer<S> for Keep {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut entry = Entry::default();
            event.record(&mut entry);
            self.0.lock().unwrap().push(entry);
        }
    }

    #[test]
    fn fields_become_fields_of_the_journal() {
        let keep = Keep::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(keep.clone()), || {
            tracing::info!(vm.id = %"v1", tries = 3, "started");
        });
        let entries = keep.0.lock().unwrap();
        assert_eq!(entries[0].line, "started vm.id=v1 tries=3");
        assert_eq!(entries[0].fields, ["KRING_VM_ID=v1", "KRING_TRIES=3"]);
    }

    #[test]
    fn a_bad_filter_is_an_error() {
        let config = LogConfig { filter: "agent=loud".into(), ..LogConfig::default() };
        assert!(start(&config).unwrap_err().to_string().contains("agent=loud"));
    }
}
