//! Logs: where `tracing` events go and how they look.

use std::io::IsTerminal as _;

use trace::log::{JsonLines, TextFields};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::{LogConfig, LogFormat};

/// The client of the message broker logs each message that comes back, with its content, and the end of
/// each connection as an error. The bus tells the sender and the operator of both, and what is in messages
/// is not for logs.
const QUIET: [&str; 2] = ["lapin::returned_messages=off", "lapin::io_loop=off"];

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("log.filter \"{filter}\" is not a filter: give a level, or such as info,controller::api=debug")]
    Filter {
        /// What was given.
        filter: String,
        /// Why not.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logs are set up already.
    #[error("logs are set up already")]
    Twice(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sets up logs for the process. Called once, before anything else.
///
/// # Errors
/// See [`Error`].
pub fn init(config: &LogConfig) -> Result<(), Error> {
    let invalid = |source| Error::Filter { filter: config.filter.clone(), source };
    let mut filter = EnvFilter::try_new(&config.filter).map_err(invalid)?;
    for quiet in QUIET {
        filter = filter.add_directive(quiet.parse().map_err(invalid)?);
    }
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            Box::new(fmt::layer().fmt_fields(TextFields::default()).with_writer(std::io::stderr).with_ansi(ansi))
        }
        LogFormat::Json => {
            Box::new(fmt::layer().json().event_format(JsonLines::default()).with_writer(std::io::stderr))
        }
        LogFormat::Journald => Box::new(Journal),
    };
    tracing::subscriber::set_global_default(Registry::default().with(layer.with_filter(filter)))?;
    Ok(())
}

/// Sends events to the system journal, with their fields as fields of the journal.
struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut entry =
            Entry { fields: vec![format!("PRIORITY={priority}")], message: String::new(), suffix: String::new() };
        entry.fields.push(format!("TARGET={}", event.metadata().target()));
        event.record(&mut entry);
        trace::log::ids().into_iter().for_each(|(name, id)| entry.add_named(name, &id));
        entry.fields.insert(0, format!("MESSAGE={}{}", entry.message, entry.suffix));
        let fields: Vec<&str> = entry.fields.iter().map(String::as_str).collect();
        // A journal that does not take an entry cannot be told of it.
        let _ = systemd::journal::send(&fields);
    }
}

/// Collects the fields of one event.
struct Entry {
    fields: Vec<String>,
    message: String,
    /// The fields as text behind the message, for people who read the journal.
    suffix: String,
}

impl Entry {
    fn add(&mut self, field: &Field, text: String) {
        if field.name() == "message" {
            self.message = text;
            return;
        }
        self.add_named(field.name(), &text);
    }

    fn add_named(&mut self, name: &str, text: &str) {
        let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let field: String = name.chars().map(upper).collect();
        self.suffix.push_str(&format!(" {name}={text}"));
        self.fields.push(format!("KRING_{field}={text}"));
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_string());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}
