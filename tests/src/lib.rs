//! What the tests and benchmarks of Kring stand on.
//!
//! - [`sim`]: thousands of simulated hosts that speak the agent's wire (a crate of its own, `tests/sim`).
//! - [`cluster`]: a controller with a database of its own, and its hosts.
//! - [`broker`]: a message broker that a test may kill, and buses over it.
//! - [`fleet`]: many controllers under fault, with [`postgres`] and ways ([`proxy`]) that can be cut.
//! - [`chaos`]: faults at random, from a seed.
//! - [`client`], [`world`]: the public API, and what most tests need made through it.
//! - [`snapshot`]: what is in the database and on the hosts, to be compared.
//! - [`kit`]: breaks every step of every flow.
//! - [`bench`]: programs that print figures.
//! - [`wait`]: waiting for conditions. - [`cmd`]: starting built programs.

pub mod bench;
pub mod broker;
pub mod chaos;
pub mod cluster;
pub mod cmd;
pub mod fleet;
pub mod kit;
pub mod postgres;
pub mod proxy;
pub mod simulate;
pub mod snapshot;
pub mod wait;
pub mod world;

pub use sim::client;

pub use sim;
