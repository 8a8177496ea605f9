//! The controller: every service in one process.

pub mod agent_client;
pub mod auth;
pub mod bus;
pub mod clock;
pub mod cx;
pub mod db;
pub mod deps;
pub mod messages;
pub mod ring;
pub mod services;
pub mod settings;
pub mod workflow;
