//! The agent of Kring: one per KVM host. It keeps nothing that libvirt, the kernel and the disks do
//! not keep for it, and does what a controller commands.
//!
//! - [`http`] speaks the wire, [`task`] runs commands one at a time per resource, [`ops`] holds one
//!   function per command.
//! - [`libvirt`], [`network`], [`storage`], [`cloud_init`] do the work; [`cmd`] is the only place
//!   that starts processes.
//! - [`identity`] and [`controller`] are the way to the controllers; [`facts`] looks at the host.
//! - [`app`] ties them together; [`config`] says how; [`service`] starts and stops it all.
//! - [`check`] and [`purge`] are for the operator: is this host fit, and away with everything.

pub mod app;
pub mod check;
pub mod cloud_init;
pub mod cmd;
pub mod config;
pub mod controller;
pub mod facts;
pub mod http;
pub mod identity;
pub mod libvirt;
pub mod log;
pub mod network;
pub mod ops;
pub mod purge;
pub mod relay;
pub mod service;
pub mod storage;
pub mod systemd;
pub mod task;
