//! The controller: every service in one process.

pub mod agent_client;
pub mod api;
pub mod app;
pub mod auth;
pub mod backup;
pub mod bootstrap;
pub mod bus;
pub mod callbacks;
pub mod clock;
pub mod config;
pub mod cx;
pub mod db;
pub mod deps;
pub mod handover;
pub mod log;
pub mod messages;
pub mod metrics;
pub mod placement;
pub mod privileges;
pub mod reconcile;
pub mod ring;
pub mod services;
pub mod settings;
pub mod specs;
pub mod systemd;
pub mod workflow;
