//! Virtual machines.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::api::Links;
use crate::api::image::Firmware;
use crate::id::{AccountId, HostId, ImageId, InstanceTypeId, NetworkId, NicId, StorageId, VmId, VolumeId};
use crate::name::Name;
pub use crate::state::vm::VmState;
use crate::time::Timestamp;
use crate::units::Bytes;

/// The largest user data, in bytes.
pub const MAX_USER_DATA: usize = 64 * 1024;

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Nic {
    /// Its id.
    pub id: NicId,
    /// The network it is in.
    pub network_id: NetworkId,
    /// Its hardware address.
    #[schema(example = "52:54:00:12:34:56")]
    pub mac: String,
    /// Its address, given by DHCP.
    #[schema(value_type = String)]
    pub ip: Ipv4Addr,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name, unique in the account.
    pub name: Name,
    /// Its owner.
    pub account_id: AccountId,
    /// What it is doing.
    pub state: VmState,
    /// Host name that the guest is given.
    pub hostname: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory: Bytes,
    /// The instance type that the sizes came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type_id: Option<InstanceTypeId>,
    /// The image that its root volume was made from.
    pub image_id: ImageId,
    /// Its root volume.
    pub root_volume_id: VolumeId,
    /// How it boots.
    pub firmware: Firmware,
    /// The host that runs it, or that holds its disks while it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    /// Whether it is started again when its host has restarted while it ran.
    #[serde(default = "yes")]
    pub auto_start: bool,
    /// Its network cards, in order.
    pub nics: Vec<Nic>,
    /// Since when it is in this state.
    pub state_since: Timestamp,
    /// Only while the state is `unknown`: what it did when its host last told. It may do something else
    /// by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_known_state: Option<VmState>,
    /// When it was deleted; it is expunged some time after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What can be done with it now.
    #[serde(default)]
    pub links: Links,
}

/// A network card to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNic {
    /// The network it is in.
    pub network_id: NetworkId,
    /// A certain free address of the network; default any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ip: Option<Ipv4Addr>,
}

/// `POST /v1/vms`. Give `instance_type_id`, or `vcpus` and `memory`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Chosen by the client, or by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VmId>,
    /// Name, unique in the account.
    pub name: Name,
    /// The image that the root volume is made from.
    pub image_id: ImageId,
    /// Sizes by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type_id: Option<InstanceTypeId>,
    /// Virtual processors, 1 to 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Guest memory in bytes, at least 16 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Size of the root volume; default the image's virtual size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_size: Option<Bytes>,
    /// Network cards, at most 8.
    #[serde(default)]
    pub nics: Vec<CreateNic>,
    /// Host name; default made from the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Public ssh keys in `authorized_keys` form, at most 20.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// cloud-init user data, at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// A certain host; default the placement's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
    /// The storage of the root volume; default the one with the most left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_id: Option<StorageId>,
    /// Whether to start it. Default true.
    #[serde(default = "yes")]
    pub start: bool,
    /// Whether it is started again when its host has restarted while it ran. Default true.
    #[serde(default = "yes")]
    pub auto_start: bool,
}

const fn yes() -> bool {
    true
}

/// `PATCH /v1/vms/{id}`: rename at any time, resize while stopped, say whether it starts with its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateVm {
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// New number of virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// New guest memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Whether it is started again when its host has restarted while it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_start: Option<bool>,
}

/// What to do when a guest does not stop by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Ask the guest; when it has not stopped in time, pull the plug.
    #[default]
    Graceful,
    /// Ask the guest; when it has not stopped in time, fail and leave it running.
    GracefulOnly,
    /// Pull the plug at once.
    Force,
}

/// `POST /v1/vms/{id}/stop` and `/reboot`; the body may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// How.
    #[serde(default)]
    pub mode: StopMode,
    /// How long the guest may take, 1 to 3600 seconds; default from the setting `vm.stop_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

/// `POST /v1/vms/{id}/migrate`; the body may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateVm {
    /// The host to move to; default the placement's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<HostId>,
}

/// `POST /v1/vms/{id}/console`: a one-time ticket for a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleKind {
    /// The serial line, as text.
    Serial,
    /// The screen, by the VNC protocol.
    Vnc,
}

/// `POST /v1/vms/{id}/console`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenConsole {
    /// Which console.
    pub kind: ConsoleKind,
}

/// A way to a console, good once and for a short time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConsoleTicket {
    /// Which console.
    pub kind: ConsoleKind,
    /// Path of the WebSocket on this server, with the ticket in it.
    pub path: String,
    /// When the ticket stops working.
    pub expires_at: Timestamp,
}

/// `GET /v1/vms/{id}/console/log`: the end of what the guest wrote to its serial line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConsoleLog {
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// Offset of the text's first byte in the log.
    pub offset: u64,
    /// Offset to ask for next.
    pub next_offset: u64,
}

/// Why a placement kept or dropped hosts; the answer to a dry run of a create or start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlacementReport {
    /// The host that would be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<HostId>,
    /// Hosts that were looked at.
    pub considered: u32,
    /// How many fell at each filter, in the order of the filters.
    pub filters: Vec<FilterReport>,
}

/// What one filter of the placement did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FilterReport {
    /// The filter.
    pub filter: String,
    /// Hosts that fell at it.
    pub dropped: u32,
    /// Why, in words.
    pub reason: String,
    /// Some of the hosts that fell, at most 10.
    pub hosts: Vec<HostId>,
}
