//! What a message is: the traits that say how it may be sent, and nothing about how it travels.
//!
//! ```text
//! Message ─┬─ Request (names its Reply and its service) ── ApiRequest (names the action, for authorisation)
//!          └─ Event ─┬─ ApiEvent        the outcome of a mutating API call
//!                    └─ CanonicalEvent  something happened: /vm/state/changed, /host/disconnected, …
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::auth::Action;

/// Anything that travels on the bus.
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Full type name, `<service>.<Type>`: the outer key on the wire. Never reused for another shape.
    const NAME: &'static str;
}

/// A message that is answered.
pub trait Request: Message + Clone {
    /// What a success answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The service that handles it.
    const SERVICE: &'static str;

    /// The resource that it is about. Such a request goes to the resource's owner and is handled
    /// there in the resource's own queue, one at a time; any other is handled where it was sent.
    fn resource(&self) -> Option<Uuid> {
        None
    }
}

/// A request that carries out what a caller of the REST API asked for.
pub trait ApiRequest: Request {
    /// What the caller must be allowed to do.
    const ACTION: Action;

    /// Noun and id of an existing resource that it touches, whose owner decides. `None` for a create
    /// or a list, where the caller's own account does.
    fn subject(&self) -> Option<(&'static str, Uuid)> {
        None
    }
}

/// A message that is published, to whoever subscribed.
pub trait Event: Message + Clone {}

/// The outcome of a mutating API call.
pub trait ApiEvent: Event {}

/// Something that happened to a resource.
pub trait CanonicalEvent: Event {
    /// What happened, such as `/vm/state/changed`.
    const PATH: &'static str;
}

/// Declares a request: `request!("vm.StartVm" to "vm" => JobRef, StartVm)`, with `about |m| uuid` for
/// one that belongs to a resource.
macro_rules! request {
    ($name:literal to $service:literal => $reply:ty, $type:ty) => {
        $crate::bus::request!(@base $name, $service, $reply, $type, |_m| None);
    };
    ($name:literal to $service:literal => $reply:ty, $type:ty, about |$m:ident| $resource:expr) => {
        $crate::bus::request!(@base $name, $service, $reply, $type, |$m| Some($resource));
    };
    (@base $name:literal, $service:literal, $reply:ty, $type:ty, |$m:ident| $resource:expr) => {
        impl $crate::bus::Message for $type {
            const NAME: &'static str = $name;
        }
        impl $crate::bus::Request for $type {
            type Reply = $reply;
            const SERVICE: &'static str = $service;
            fn resource(&self) -> Option<uuid::Uuid> {
                let $m = self;
                $resource
            }
        }
    };
}
pub(crate) use request;
