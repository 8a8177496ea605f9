//! What the tests and benchmarks of Kring stand on.
//!
//! - [`sim`]: thousands of simulated hosts that speak the agent's wire.
//! - [`client`]: a client of the public API.

pub mod client;
pub mod sim;
