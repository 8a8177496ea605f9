//! Typed resource ids: UUIDs that cannot be mixed up between nouns.
//!
//! New ids are UUIDv7, so rows that are made together lie together in an index. A client may choose
//! the id of what it creates; any UUID version is accepted from it except the nil one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A string that is not an id of the noun that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not a {noun} id: give a UUID such as 01939f00-3b1a-7c3e-9d5e-0b8a6c2f4e11")]
pub struct InvalidId {
    given: String,
    noun: &'static str,
}

/// What all typed ids share; used by code that is the same for every noun.
pub trait ResourceId: Copy + Send + Sync + fmt::Display + 'static {
    /// The noun, as it is written in the API's paths without the plural.
    const NOUN: &'static str;
    /// The bare UUID.
    fn uuid(self) -> Uuid;
}

macro_rules! typed_id {
    ($($(#[$doc:meta])* $name:ident = $noun:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new, time-ordered id.
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id that these bits name.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl ResourceId for $name {
            const NOUN: &'static str = $noun;
            fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($noun, ":{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                match Uuid::try_parse(s) {
                    Ok(uuid) if !uuid.is_nil() => Ok(Self(uuid)),
                    _ => Err(InvalidId { given: s.chars().take(80).collect(), noun: $noun }),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                s.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

typed_id! {
    /// An account: the owner of resources.
    AccountId = "account";
    /// A bearer token of an account.
    TokenId = "token";
    /// A zone: a failure domain that holds clusters.
    ZoneId = "zone";
    /// A cluster: hosts that share networks and storage.
    ClusterId = "cluster";
    /// A KVM host.
    HostId = "host";
    /// A named size of VM.
    InstanceTypeId = "instance_type";
    /// A disk image that VMs are made from.
    ImageId = "image";
    /// A place where volumes are kept.
    StorageId = "storage";
    /// A virtual disk.
    VolumeId = "volume";
    /// A virtual network.
    NetworkId = "network";
    /// A virtual machine.
    VmId = "vm";
    /// A network card of a VM.
    NicId = "nic";
    /// A unit of accepted work.
    JobId = "job";
    /// A running controller process; new at every start.
    ControllerId = "controller";
    /// One command sent to an agent; sent again under the same id, it is not run twice.
    TaskId = "task";
    /// A one-time permission for a host to join.
    JoinTokenId = "join_token";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_through_json_and_text() {
        let id = VmId::new();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<VmId>(&json).unwrap(), id);
        assert_eq!(id.to_string().parse::<VmId>().unwrap(), id);
    }

    #[test]
    fn a_nil_or_malformed_id_is_refused_with_the_noun() {
        for bad in ["", "../etc", "00000000-0000-0000-0000-000000000000"] {
            let error = bad.parse::<VmId>().unwrap_err().to_string();
            assert!(error.contains("not a vm id"), "{error}");
        }
    }
}
