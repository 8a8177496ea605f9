//! The agent with the real thing: libvirt, QEMU, dnsmasq, nftables, the kernel's namespaces. Each test
//! has a host of its own and is skipped, with the reason, where there can be none.
#![expect(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

mod agent;
mod faults;
mod fencing;
mod lab;
mod life;
mod migrate;
mod networks;
