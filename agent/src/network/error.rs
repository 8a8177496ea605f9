//! What can go wrong with a network, and what the controller is told of it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use shared::Code;
use shared::id::NetworkId;

use super::files::FileError;
use crate::cmd;

/// Why a network could not be set up or taken down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program failed.
    #[error(transparent)]
    Program(#[from] cmd::Error),
    /// A file could not be worked on.
    #[error(transparent)]
    File(#[from] FileError),
    /// What `ip` told cannot be read.
    #[error("what `ip` tells of the host's links cannot be read")]
    Ip(#[source] serde_json::Error),
    /// A namespace could not be worked on.
    #[error("the network namespace {path} could not be {doing}")]
    Namespace {
        /// What was being done.
        doing: &'static str,
        /// The namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A setting of the kernel could not be written.
    #[error("the kernel setting {name} could not be written")]
    Sysctl {
        /// The setting.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// All names that were tried are taken.
    #[error("every link name that was tried for network {0} is taken on this host")]
    NoName(NetworkId),
    /// A hardware address is none.
    #[error("\"{0}\" is not a hardware address")]
    BadMac(String),
    /// An address lies outside of its network.
    #[error("{ip} is not an address of the network {cidr}")]
    BadAddress {
        /// The address.
        ip: Ipv4Addr,
        /// The network.
        cidr: ipnet::Ipv4Net,
    },
    /// The network is not on this host.
    #[error("network {0} is not set up on this host")]
    Unknown(NetworkId),
    /// The host has no such interface.
    #[error("the host has no interface {0}, which the network lies on")]
    NoUplink(String),
    /// An interface cannot carry a network.
    #[error("the interface {uplink} cannot carry the network: {why}")]
    Uplink {
        /// The interface.
        uplink: String,
        /// Why, and what can be done.
        why: String,
    },
    /// A specification lacks what its kind needs.
    #[error("network {network_id} has not {what}, which its kind needs")]
    Incomplete {
        /// The network.
        network_id: NetworkId,
        /// What it lacks.
        what: &'static str,
    },
    /// Something took too long.
    #[error("waited too long until {0}")]
    TooLong(&'static str),
}

impl From<Error> for shared::Error {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Program(error) => return error.into(),
            Error::File(error) => return error.into(),
            Error::BadMac(_) | Error::BadAddress { .. } | Error::Incomplete { .. } => Code::InvalidRequest,
            Error::NoUplink(_) | Error::Uplink { .. } => Code::InvalidState,
            Error::Unknown(_) => Code::NotFound,
            Error::NoName(_) => Code::Exhausted,
            Error::TooLong(_) => Code::DeadlineExceeded,
            Error::Ip(_) | Error::Namespace { .. } | Error::Sysctl { .. } => Code::HostFailed,
        };
        let wire = Self::new(code, error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => wire.caused_by(source),
            None => wire,
        }
    }
}
