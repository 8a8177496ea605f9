//! The command as its users run it: the real program against a small server that plays the controller.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod change;
mod cmd;
mod config;
mod console;
mod errors;
mod event;
mod fake;
mod help;
mod image;
mod list;
mod retry;
mod tls;
