//! What services may ask of each other: one file per noun, types only.
//!
//! The gateway and the services know these messages; no service knows another service's module.
//! Every request of the REST API has one message, so whatever a user can do, a service can ask for.

pub mod account;
pub mod cluster;
pub mod controller;
pub mod event;
pub mod host;
pub mod image;
pub mod instance_type;
pub mod job;
pub mod network;
pub mod setting;
pub mod storage;
pub mod vm;
pub mod volume;
pub mod zone;

/// Declares `Get…` and `List…` of a noun: `reads!("vm", vm, GetVm(VmId) / ListVms => Vm, Read)`.
macro_rules! reads {
    ($service:literal, $get_name:literal => $get:ident($id:ty), $list_name:literal => $list:ident, $view:ty, $action:ident) => {
        /// Asks for one.
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct $get {
            /// Which.
            pub id: $id,
        }
        // A read may be answered by any controller, so it belongs to no resource's queue.
        $crate::bus::request!($get_name to $service => $view, $get);
        impl $crate::bus::ApiRequest for $get {
            const ACTION: $crate::auth::Action = $crate::auth::Action::$action;
            fn subject(&self) -> Option<(&'static str, uuid::Uuid)> {
                Some((<$id as shared::id::ResourceId>::NOUN, shared::id::ResourceId::uuid(self.id)))
            }
        }

        /// Asks for a page of those that the caller may see.
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct $list {
            /// Which, in what order, how many.
            pub params: shared::api::page::ListParams,
        }
        $crate::bus::request!($list_name to $service => shared::api::page::Page<$view>, $list);
        impl $crate::bus::ApiRequest for $list {
            const ACTION: $crate::auth::Action = $crate::auth::Action::$action;
        }
    };
}
pub(crate) use reads;

/// Declares a request that makes something: `creates!("zone.CreateZone" to "zone" => Zone, CreateZone(body type), Operate)`.
/// The id is chosen before sending, so that the request goes to the new resource's owner.
macro_rules! creates {
    ($name:literal to $service:literal => $reply:ty, $type:ident($id:ty, $body:ty), $action:ident) => {
        /// Makes one.
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $type {
            /// Its id, chosen by the client or by the gateway.
            pub id: $id,
            /// What was asked for.
            pub body: $body,
        }
        $crate::bus::request!($name to $service => $reply, $type, about |m| shared::id::ResourceId::uuid(m.id));
        impl $crate::bus::ApiRequest for $type {
            const ACTION: $crate::auth::Action = $crate::auth::Action::$action;
        }
    };
}
pub(crate) use creates;

/// Declares a request that changes an existing resource: `changes!("vm.StartVm" to "vm" => JobRef, StartVm(VmId), Write)`
/// or, with a body, `StartVm(VmId, body: Body)`.
macro_rules! changes {
    ($(#[$doc:meta])* $name:literal to $service:literal => $reply:ty, $type:ident($id:ty $(, body: $body:ty)?), $action:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $type {
            /// Which.
            pub id: $id,
            $(
                /// What was asked for.
                pub body: $body,
            )?
        }
        $crate::bus::request!($name to $service => $reply, $type, about |m| shared::id::ResourceId::uuid(m.id));
        impl $crate::bus::ApiRequest for $type {
            const ACTION: $crate::auth::Action = $crate::auth::Action::$action;
            fn subject(&self) -> Option<(&'static str, uuid::Uuid)> {
                Some((<$id as shared::id::ResourceId>::NOUN, shared::id::ResourceId::uuid(self.id)))
            }
        }
    };
}
pub(crate) use changes;
