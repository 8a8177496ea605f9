//! The integration tests: one binary, one module per noun, each test with a controller of its own.

mod api;
mod architecture;
mod bench;
mod bus;
mod console;
mod faults;
mod fleet;
mod flows;
mod host;
mod image;
mod job;
mod limits;
mod migrate;
mod network;
mod process;
mod stream;
mod trace;
mod vm;
mod volume;
