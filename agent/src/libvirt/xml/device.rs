//! Devices of a domain: disks and cards. The same element goes into a new domain's definition and
//! into a hot plug.

use std::path::PathBuf;

use shared::api::image::DiskFormat;
use shared::id::VolumeId;

use super::Element;
use super::filter::GUEST;

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The volume.
    pub volume_id: VolumeId,
    /// File that holds it.
    pub path: PathBuf,
    /// Its format; QEMU must never guess it.
    pub format: DiskFormat,
    /// Device name in the guest, such as `vda`.
    pub device: String,
    /// Whether the file system takes direct I/O; without it the host's cache is used, which is as
    /// safe (a guest's flush is a flush to the disk) but costs memory twice.
    pub direct: bool,
}

impl Disk {
    /// The serial number that the guest sees, as in `/dev/disk/by-id/virtio-<serial>`: the 20
    /// characters that virtio has room for, taken from the end of the id, where UUIDv7 is random.
    #[must_use]
    pub fn serial(volume_id: VolumeId) -> String {
        let mut text = shared::id::ResourceId::uuid(volume_id).simple().to_string();
        text.split_off(text.len() - 20)
    }

    /// The device, whose boot order is `boot` when it is given.
    #[must_use]
    pub fn element(&self, boot: Option<u32>) -> Element {
        let cache = if self.direct { "none" } else { "writeback" };
        let disk = Element::new("disk")
            .attr("type", "file")
            .attr("device", "disk")
            .child(
                Element::new("driver")
                    .attr("name", "qemu")
                    .attr("type", self.format.as_str())
                    .attr("cache", cache)
                    .attr("discard", "unmap"),
            )
            .child(Element::new("source").attr("file", self.path.display()))
            .child(Element::new("target").attr("dev", &self.device).attr("bus", "virtio"))
            .text_child("serial", Self::serial(self.volume_id));
        match boot {
            Some(order) => disk.child(Element::new("boot").attr("order", order)),
            None => disk,
        }
    }
}

/// The seed image that cloud-init reads, always the last disk so that it moves no name in the guest.
#[must_use]
pub fn seed(path: &std::path::Path) -> Element {
    Element::new("disk")
        .attr("type", "file")
        .attr("device", "disk")
        .child(Element::new("driver").attr("name", "qemu").attr("type", "raw"))
        .child(Element::new("source").attr("file", path.display()))
        .child(Element::new("target").attr("dev", "vdzz").attr("bus", "virtio"))
        .child(Element::new("readonly"))
        .text_child("serial", "kring-seed")
}

/// A card of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Hardware address.
    pub mac: String,
    /// The only address that it may speak with.
    pub ip: std::net::Ipv4Addr,
    /// The bridge it is plugged into.
    pub bridge: String,
    /// Largest packet.
    pub mtu: u16,
    /// Whether frames with another MAC or IP are dropped before they leave the card.
    pub filtered: bool,
}

impl Nic {
    /// The device.
    #[must_use]
    pub fn element(&self) -> Element {
        let parameter = |name: &str, value: String| Element::new("parameter").attr("name", name).attr("value", value);
        let card = Element::new("interface")
            .attr("type", "bridge")
            .child(Element::new("mac").attr("address", &self.mac))
            .child(Element::new("source").attr("bridge", &self.bridge))
            .child(Element::new("model").attr("type", "virtio"))
            .child(Element::new("mtu").attr("size", self.mtu));
        if !self.filtered {
            return card;
        }
        card.child(
            Element::new("filterref")
                .attr("filter", GUEST)
                .child(parameter("IP", self.ip.to_string()))
                .child(parameter("MAC", self.mac.clone())),
        )
    }
}
