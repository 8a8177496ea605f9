//! What the agent reads out of a domain's XML as libvirt gives it back.

use serde::Deserialize;

/// The parts of a domain that are asked for.
#[derive(Clone, Debug, Deserialize)]
pub struct DomainXml {
    /// Its devices.
    pub devices: Devices,
}

/// Devices, by kind.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Devices {
    /// Disks.
    #[serde(default)]
    pub disk: Vec<Disk>,
    /// Cards.
    #[serde(default)]
    pub interface: Vec<Interface>,
    /// Serial lines.
    #[serde(default)]
    pub serial: Vec<Serial>,
    /// Screens.
    #[serde(default)]
    pub graphics: Vec<Graphics>,
    /// Channels.
    #[serde(default)]
    pub channel: Vec<Channel>,
}

/// A disk.
#[derive(Clone, Debug, Deserialize)]
pub struct Disk {
    /// Where it shows in the guest.
    pub target: DiskTarget,
    /// What holds it; absent for an empty drive.
    pub source: Option<DiskSource>,
    /// Its serial number.
    pub serial: Option<String>,
}

/// Where a disk shows in the guest.
#[derive(Clone, Debug, Deserialize)]
pub struct DiskTarget {
    /// Device name.
    #[serde(rename = "@dev")]
    pub dev: String,
}

/// What holds a disk.
#[derive(Clone, Debug, Deserialize)]
pub struct DiskSource {
    /// Path of the file, when it is one.
    #[serde(rename = "@file")]
    pub file: Option<String>,
}

/// A card.
#[derive(Clone, Debug, Deserialize)]
pub struct Interface {
    /// Where it is plugged in.
    pub source: Option<InterfaceSource>,
}

/// Where a card is plugged in.
#[derive(Clone, Debug, Deserialize)]
pub struct InterfaceSource {
    /// The bridge.
    #[serde(rename = "@bridge")]
    pub bridge: Option<String>,
}

/// A serial line.
#[derive(Clone, Debug, Deserialize)]
pub struct Serial {
    /// Its end on the host; only while the domain runs.
    pub source: Option<SerialSource>,
}

/// The host's end of a serial line.
#[derive(Clone, Debug, Deserialize)]
pub struct SerialSource {
    /// Path of the terminal.
    #[serde(rename = "@path")]
    pub path: Option<String>,
}

/// A screen.
#[derive(Clone, Debug, Deserialize)]
pub struct Graphics {
    /// Its protocol.
    #[serde(rename = "@type")]
    pub kind: String,
    /// Its port; -1 while the domain does not run.
    #[serde(rename = "@port")]
    pub port: Option<i32>,
}

/// A channel between host and guest.
#[derive(Clone, Debug, Deserialize)]
pub struct Channel {
    /// Its end in the guest.
    pub target: Option<ChannelTarget>,
}

/// The guest's end of a channel.
#[derive(Clone, Debug, Deserialize)]
pub struct ChannelTarget {
    /// Its name.
    #[serde(rename = "@name")]
    pub name: Option<String>,
    /// Whether somebody listens in the guest; only while the domain runs.
    #[serde(rename = "@state")]
    pub state: Option<String>,
}

impl DomainXml {
    /// Reads a domain's XML.
    ///
    /// # Errors
    /// When it is not a domain's XML.
    pub fn parse(xml: &str) -> Result<Self, quick_xml::DeError> {
        quick_xml::de::from_str(xml)
    }

    /// The terminal that the first serial line is connected to.
    #[must_use]
    pub fn serial_path(&self) -> Option<&str> {
        self.devices.serial.first()?.source.as_ref()?.path.as_deref()
    }

    /// The port of the VNC server.
    #[must_use]
    pub fn vnc_port(&self) -> Option<u16> {
        let vnc = self.devices.graphics.iter().find(|g| g.kind == "vnc")?;
        u16::try_from(vnc.port?).ok().filter(|port| *port > 0)
    }

    /// The disk with this serial number.
    #[must_use]
    pub fn disk_by_serial(&self, serial: &str) -> Option<&Disk> {
        self.devices.disk.iter().find(|d| d.serial.as_deref() == Some(serial))
    }

    /// The disk that shows as this device.
    #[must_use]
    pub fn disk_by_device(&self, device: &str) -> Option<&Disk> {
        self.devices.disk.iter().find(|d| d.target.dev == device)
    }

    /// Whether the QEMU guest agent answers in the guest.
    #[must_use]
    pub fn guest_agent_connected(&self) -> bool {
        self.devices.channel.iter().filter_map(|c| c.target.as_ref()).any(|target| {
            target.name.as_deref() == Some("org.qemu.guest_agent.0") && target.state.as_deref() == Some("connected")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_domain_shows_its_consoles_and_disks() {
        let xml = r"<domain type='qemu' id='3'><name>x</name><devices>
            <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
            <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a/b.qcow2' index='1'/>
              <backingStore/><target dev='vda' bus='virtio'/><serial>abc</serial><alias name='virtio-disk0'/></disk>
            <controller type='pci' index='0' model='pcie-root'/>
            <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='kr-1'/><target dev='vnet0'/></interface>
            <serial type='pty'><source path='/dev/pts/7'/><log file='/l' append='on'/><target type='isa-serial' port='0'/></serial>
            <console type='pty' tty='/dev/pts/7'><source path='/dev/pts/7'/></console>
            <channel type='unix'><source mode='bind' path='/s'/><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
            <graphics type='vnc' port='5901' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>
            </devices></domain>";
        let domain = DomainXml::parse(xml).unwrap();
        assert_eq!(domain.serial_path(), Some("/dev/pts/7"));
        assert_eq!(domain.vnc_port(), Some(5901));
        assert!(domain.guest_agent_connected());
        assert_eq!(domain.disk_by_serial("abc").unwrap().target.dev, "vda");
        assert!(domain.disk_by_serial("abd").is_none());
        let file = domain.disk_by_device("vda").unwrap().source.as_ref().unwrap().file.as_deref();
        assert_eq!(file, Some("/a/b.qcow2"));
        assert!(domain.disk_by_device("sda").unwrap().source.is_none());
        assert_eq!(domain.devices.interface[0].source.as_ref().unwrap().bridge.as_deref(), Some("kr-1"));
    }

    #[test]
    fn a_domain_that_does_not_run_has_no_consoles() {
        let xml = "<domain><devices><serial type='pty'><target port='0'/></serial>\
                   <graphics type='vnc' port='-1' autoport='yes'/></devices></domain>";
        let domain = DomainXml::parse(xml).unwrap();
        assert_eq!((domain.serial_path(), domain.vnc_port(), domain.guest_agent_connected()), (None, None, false));
    }
}
