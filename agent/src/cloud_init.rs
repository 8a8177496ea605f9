//! What a guest's cloud-init is told: made here once, given as the NoCloud seed image (label
//! `CIDATA`) and by the metadata service alike, kept in the VM's folder below the data folder.
//!
//! YAML is written as JSON, which is YAML too, so that no value can break out of its place.

use std::io::{self, Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::id::{ResourceId, VmId};
use shared::wire::vm::{CloudInit, NicSpec, VmSpec};

use crate::network::files::{FileError, read_json, write_atomic};

/// Most sectors of 512 bytes for everything beside the user data: half a MiB.
const BASE_SECTORS: u32 = 1024;

/// A card, as cloud-init is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Hardware address, in lower case.
    pub mac: String,
    /// Address.
    pub ip: std::net::Ipv4Addr,
    /// Largest packet.
    pub mtu: u16,
}

/// Everything that one guest is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestData {
    /// The VM, which is also cloud-init's instance id: a new id means a first boot.
    pub vm_id: VmId,
    /// Host name, fit for DNS.
    pub hostname: String,
    /// Public ssh keys.
    pub ssh_keys: Vec<String>,
    /// User data as it was given.
    pub user_data: Option<String>,
    /// Cards, in order.
    pub cards: Vec<Card>,
}

/// The folder of a VM below the data folder.
#[must_use]
pub fn vm_dir(data_dir: &Path, vm_id: VmId) -> PathBuf {
    data_dir.join("vms").join(vm_id.to_string())
}

/// A host name that DNS, DHCP and cloud-init all take: lower-case letters, digits and inner hyphens.
/// One that has none of these becomes `vm-` and the end of the VM's id.
#[must_use]
pub fn safe_hostname(given: &str, vm_id: VmId) -> String {
    let label = given.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let kept: String = label.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    let kept = kept.trim_matches('-');
    if kept.is_empty() {
        let id = vm_id.uuid().simple().to_string();
        format!("vm-{}", &id[id.len() - 8..])
    } else {
        kept.to_string()
    }
}

impl GuestData {
    /// What the guest of a VM is told.
    #[must_use]
    pub fn of(vm: &VmSpec) -> Self {
        Self::new(vm.vm_id, &vm.cloud_init, &vm.nics)
    }

    /// What a guest with these cards is told.
    #[must_use]
    pub fn new(vm_id: VmId, cloud_init: &CloudInit, nics: &[NicSpec]) -> Self {
        let card = |nic: &NicSpec| Card { mac: nic.mac.to_ascii_lowercase(), ip: nic.ip, mtu: nic.network.mtu };
        Self {
            vm_id,
            hostname: safe_hostname(&cloud_init.hostname, vm_id),
            ssh_keys: cloud_init.ssh_keys.clone(),
            user_data: cloud_init.user_data.clone(),
            cards: nics.iter().map(card).collect(),
        }
    }

    /// Reads what [`GuestData::write`] left; `None` when the VM has no folder.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>, FileError> {
        read_json(&dir.join("cloud-init.json"))
    }

    /// Writes the data and the seed image into the VM's folder, each at once or not at all.
    ///
    /// # Errors
    /// When the disk does not take them.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, FileError> {
        std::fs::create_dir_all(dir).map_err(|e| FileError::new("making", dir, e))?;
        let seed = dir.join("seed.img");
        let image = self.image().map_err(|e| FileError::new("building", &seed, e))?;
        write_atomic(&seed, &image, 0o600)?;
        write_atomic(&dir.join("cloud-init.json"), self.to_json().as_bytes(), 0o600)?;
        Ok(seed)
    }

    fn to_json(&self) -> String {
        json!(self).to_string()
    }

    /// NoCloud's `meta-data`.
    #[must_use]
    pub fn meta_data(&self) -> String {
        let data = json!({
            "instance-id": self.vm_id,
            "local-hostname": self.hostname,
            "public-keys": self.ssh_keys,
        });
        format!("{data:#}\n")
    }

    /// The user data; a default that sets host name and keys when none was given.
    #[must_use]
    pub fn user_data(&self) -> String {
        if let Some(user_data) = &self.user_data {
            return user_data.clone();
        }
        let data = json!({ "hostname": self.hostname, "ssh_authorized_keys": self.ssh_keys });
        format!("#cloud-config\n{data:#}\n")
    }

    /// NoCloud's `network-config`, version 2: every card by its MAC, address by DHCP. The first card
    /// has the default route; the others keep theirs as a spare.
    #[must_use]
    pub fn network_config(&self) -> String {
        let mut ethernets = serde_json::Map::new();
        for (n, card) in self.cards.iter().enumerate() {
            let config = json!({
                "match": { "macaddress": card.mac },
                "dhcp4": true,
                "dhcp6": false,
                "dhcp4-overrides": { "route-metric": 100 + n },
                "mtu": card.mtu,
            });
            ethernets.insert(format!("nic{n}"), config);
        }
        format!("{:#}\n", json!({ "version": 2, "ethernets": ethernets }))
    }

    /// The seed image: a FAT file system, the same bytes for the same data.
    ///
    /// # Errors
    /// When the file system cannot be made in memory; does not happen with data that the API accepts.
    pub fn image(&self) -> io::Result<Vec<u8>> {
        let files = [
            ("meta-data", self.meta_data()),
            ("user-data", self.user_data()),
            ("network-config", self.network_config()),
        ];
        let content: usize = files.iter().map(|(_, text)| text.len()).sum();
        // Twice the content leaves room for the file system's own blocks.
        let sectors = BASE_SECTORS + u32::try_from(content / 256).map_err(io::Error::other)?;
        let mut image = Cursor::new(vec![0_u8; sectors as usize * 512]);
        let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(0x4b72_696e);
        fatfs::format_volume(&mut image, options)?;
        write_files(&mut image, &files)?;
        Ok(image.into_inner())
    }
}

fn write_files<D: Read + Write + Seek>(disk: &mut D, files: &[(&str, String)]) -> io::Result<()> {
    disk.rewind()?;
    let fs = fatfs::FileSystem::new(disk, fatfs::FsOptions::new())?;
    for (name, text) in files {
        let mut file = fs.root_dir().create_file(name)?;
        file.truncate()?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    fs.unmount()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::vm;

    fn file(image: &[u8], name: &str) -> String {
        let fs = fatfs::FileSystem::new(Cursor::new(image.to_vec()), fatfs::FsOptions::new()).unwrap();
        let mut text = String::new();
        fs.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_seed_holds_what_no_cloud_looks_for() {
        let data = GuestData::of(&vm());
        let image = data.image().unwrap();
        let fs = fatfs::FileSystem::new(Cursor::new(image.clone()), fatfs::FsOptions::new()).unwrap();
        assert_eq!(fs.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let all = ["meta-data", "user-data", "network-config"].map(|name| file(&image, name));
        insta::assert_snapshot!("seed", all.join("---\n"));
        assert_eq!(image, data.image().unwrap());
    }

    #[test]
    fn user_data_is_given_as_it_was_given_whatever_it_holds() {
        let mut data = GuestData::of(&vm());
        let given = format!("#!/bin/sh\necho '{}'\n\u{1F600}\0", "x".repeat(64 * 1024));
        data.user_data = Some(given.clone());
        assert_eq!(file(&data.image().unwrap(), "user-data"), given);
    }

    #[test]
    fn it_is_read_back_from_the_folder_of_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let vm_dir = vm_dir(dir.path(), vm().vm_id);
        assert!(GuestData::read(&vm_dir).unwrap().is_none());
        let data = GuestData::of(&vm());
        data.write(&vm_dir).unwrap();
        data.write(&vm_dir).unwrap();
        assert_eq!(GuestData::read(&vm_dir).unwrap(), Some(data));
    }

    #[test]
    fn a_hostile_host_name_is_made_harmless() {
        let id = vm().vm_id;
        for (given, safe) in [
            ("Web_1", "web1"),
            ("a.b.c", "a"),
            ("-x-", "x"),
            ("a,b\nc", "abc"),
            ("", "vm-00000001"),
            ("名", "vm-00000001"),
        ] {
            assert_eq!(safe_hostname(given, id), safe, "{given:?}");
        }
    }
}
