//! The integration tests: one binary, one module per noun, each test with a controller of its own.

mod architecture;
mod faults;
mod flows;
mod host;
mod image;
mod vm;
