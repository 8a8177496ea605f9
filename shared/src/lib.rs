//! What crosses a wire in Kring, and nothing that does I/O.
//!
//! - [`api`]: requests and answers of the public REST API, one file per noun.
//! - [`wire`]: the protocol between controller and agent, one file per noun.
//! - [`state`]: state enums with their transition tables, one file per noun.
//! - [`id`], [`units`], [`time`], [`error`], [`name`]: the words that all of them use.
//! - [`fence`]: which commands hosts refuse because they come too late.
//! - [`image_header`]: what a disk image says of itself, read without trusting it.

pub mod api;
pub mod error;
pub mod fence;
pub mod id;
pub mod image_header;
pub mod name;
pub mod state;
pub mod time;
pub mod units;
pub mod wire;

pub use error::{Code, Error, Result};
