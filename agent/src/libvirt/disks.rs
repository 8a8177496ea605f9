//! Plugging disks in and out. Running domain, definition and metadata are looked at one by one, so
//! that a call which was cut off in the middle is completed by the next.

use shared::id::{VmId, VolumeId};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use super::Error;
use super::calls::{domain, failed, identity, is_active, read, set_identity};
use super::metadata::DiskIdentity;
use super::xml::device::Disk;
use super::xml::read::DomainXml;

/// Plugs a disk in wherever it is missing.
pub fn attach(connect: &Connect, vm_id: VmId, disk: &Disk) -> Result<(), Error> {
    let domain = domain(connect, vm_id)?;
    let mut flags = 0;
    if is_active(&domain)? && is_missing(&read(&domain, 0)?, disk)? {
        flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
    }
    if is_missing(&read(&domain, sys::VIR_DOMAIN_XML_INACTIVE)?, disk)? {
        flags |= sys::VIR_DOMAIN_AFFECT_CONFIG;
    }
    if flags != 0 {
        domain.attach_device_flags(&disk.element(None).render(), flags).map_err(|e| failed("plug the disk in", &e))?;
    }
    remember(&domain, |disks| {
        disks.retain(|d| d.volume_id != disk.volume_id);
        disks.push(DiskIdentity { volume_id: disk.volume_id, device: disk.device.clone() });
    })
}

/// Whether a volume is plugged in nowhere: neither in the running domain nor in its definition.
pub fn is_out(connect: &Connect, vm_id: VmId, volume_id: VolumeId) -> Result<bool, Error> {
    let (domain, serial) = (domain(connect, vm_id)?, Disk::serial(volume_id));
    for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
        if read(&domain, flags)?.disk_by_serial(&serial).is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the disk has to be plugged in.
fn is_missing(xml: &DomainXml, disk: &Disk) -> Result<bool, Error> {
    let serial = Disk::serial(disk.volume_id);
    let wrong = |message: String| Err(Error::WrongState { call: "plug the disk in", message });
    match (xml.disk_by_serial(&serial), xml.disk_by_device(&disk.device)) {
        (Some(there), _) if there.target.dev == disk.device => Ok(false),
        (Some(there), _) => wrong(format!("the volume is plugged in as {}", there.target.dev)),
        (None, Some(_)) => wrong(format!("another disk is plugged in as {}", disk.device)),
        (None, None) => Ok(true),
    }
}

/// Asks the running guest to let go of a disk; when it has, takes the disk out of the definition and
/// the metadata. Returns whether it is out.
pub fn detach(connect: &Connect, vm_id: VmId, volume_id: VolumeId) -> Result<bool, Error> {
    let domain = domain(connect, vm_id)?;
    let serial = Disk::serial(volume_id);
    if is_active(&domain)? && !detach_live(&domain, &serial)? {
        return Ok(false);
    }
    if let Some(xml) = detach_element(&read(&domain, sys::VIR_DOMAIN_XML_INACTIVE)?, &serial) {
        let flags = sys::VIR_DOMAIN_AFFECT_CONFIG;
        domain.detach_device_flags(&xml, flags).map_err(|e| failed("unplug the disk", &e))?;
    }
    remember(&domain, |disks| disks.retain(|d| d.volume_id != volume_id))?;
    Ok(true)
}

fn detach_live(domain: &Domain, serial: &str) -> Result<bool, Error> {
    let Some(xml) = detach_element(&read(domain, 0)?, serial) else { return Ok(true) };
    let asked = domain.detach_device_flags(&xml, sys::VIR_DOMAIN_AFFECT_LIVE);
    let gone = detach_element(&read(domain, 0)?, serial).is_none();
    match asked {
        Ok(()) => Ok(gone),
        // Asked for before, and the guest has not let go yet.
        Err(error) if error.message().contains("already in the process of unplug") => Ok(gone),
        Err(_) if gone => Ok(true),
        Err(error) => Err(failed("unplug the disk", &error)),
    }
}

/// libvirt finds the disk by its device name.
fn detach_element(xml: &DomainXml, serial: &str) -> Option<String> {
    let disk = xml.disk_by_serial(serial)?;
    let file = disk.source.as_ref().and_then(|s| s.file.clone()).unwrap_or_default();
    let element = super::xml::Element::new("disk")
        .attr("type", "file")
        .attr("device", "disk")
        .child(super::xml::Element::new("source").attr("file", file))
        .child(super::xml::Element::new("target").attr("dev", &disk.target.dev).attr("bus", "virtio"));
    Some(element.render())
}

fn remember(domain: &Domain, change: impl FnOnce(&mut Vec<DiskIdentity>)) -> Result<(), Error> {
    let Some(mut known) = identity(domain)? else { return Ok(()) };
    let before = known.disks.clone();
    change(&mut known.disks);
    if known.disks == before { Ok(()) } else { set_identity(domain, &known) }
}
