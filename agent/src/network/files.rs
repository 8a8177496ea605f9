//! What of a network lies on disk: its specification, its leases, the configuration of its dnsmasq.
//!
//! `<data>/networks/<network-id>/` holds `network.json`, `leases/<nic-id>.json` and, readable for
//! dnsmasq, `dnsmasq.conf`, `dhcp/<nic-id>` and `names/<nic-id>`. Files appear whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shared::id::{NetworkId, NicId, VmId};
use shared::wire::network::NetworkSpec;

pub use crate::storage::FileError;

/// A network as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What the controller wants.
    pub spec: NetworkSpec,
    /// End of the names of its bridge, veth and namespace.
    pub suffix: String,
    /// Whether all of it was set up for this specification: until then addresses of an earlier one
    /// may be left.
    #[serde(default)]
    pub complete: bool,
}

/// An address that a card is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The VM.
    pub vm_id: VmId,
    /// The card.
    pub nic_id: NicId,
    /// Its hardware address, checked and in lower case.
    pub mac: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Host name, fit for DNS.
    pub hostname: String,
}

/// The folder of one network.
#[derive(Clone, Debug)]
pub struct NetworkDir(pub PathBuf);

impl NetworkDir {
    /// Makes the folders.
    pub fn create(&self) -> Result<(), FileError> {
        for (dir, mode) in
            [(self.0.clone(), 0o755), (self.dhcp(), 0o755), (self.names(), 0o755), (self.leases(), 0o700)]
        {
            fs::create_dir_all(&dir).map_err(|e| FileError::new("making", &dir, e))?;
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(&dir, mode).map_err(|e| FileError::new("making", &dir, e))?;
        }
        Ok(())
    }

    /// Where dnsmasq reads who gets which address.
    #[must_use]
    pub fn dhcp(&self) -> PathBuf {
        self.0.join("dhcp")
    }

    /// Where dnsmasq reads names.
    #[must_use]
    pub fn names(&self) -> PathBuf {
        self.0.join("names")
    }

    fn leases(&self) -> PathBuf {
        self.0.join("leases")
    }

    /// The specification; `None` when the network is not there.
    pub fn record(&self) -> Result<Option<Record>, FileError> {
        read_json(&self.0.join("network.json"))
    }

    /// Keeps the specification.
    pub fn write_record(&self, record: &Record) -> Result<(), FileError> {
        write_json(&self.0.join("network.json"), record, 0o600)
    }

    /// Keeps a lease and writes it for dnsmasq. Returns whether an earlier one of this card differed,
    /// which dnsmasq must be told to forget.
    pub fn write_lease(&self, lease: &Lease) -> Result<bool, FileError> {
        let path = self.leases().join(format!("{}.json", lease.nic_id));
        let old: Option<Lease> = read_json(&path)?;
        let complete =
            self.dhcp().join(lease.nic_id.to_string()).exists() && self.names().join(lease.nic_id.to_string()).exists();
        if old.as_ref() == Some(lease) && complete {
            return Ok(false);
        }
        write_json(&path, lease, 0o600)?;
        let (dhcp, names) = super::dnsmasq::lease_lines(lease);
        write_atomic(&self.names().join(lease.nic_id.to_string()), names.as_bytes(), 0o644)?;
        write_atomic(&self.dhcp().join(lease.nic_id.to_string()), dhcp.as_bytes(), 0o644)?;
        Ok(old.is_some_and(|old| old != *lease))
    }

    /// Forgets a lease. Returns whether there was one.
    pub fn remove_lease(&self, nic_id: NicId) -> Result<bool, FileError> {
        let mut removed = false;
        let json = self.leases().join(format!("{nic_id}.json"));
        for path in [self.dhcp().join(nic_id.to_string()), self.names().join(nic_id.to_string()), json] {
            match fs::remove_file(&path) {
                Ok(()) => removed = true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(FileError::new("removing", &path, e)),
            }
        }
        Ok(removed)
    }

    /// All leases.
    pub fn all_leases(&self) -> Result<Vec<Lease>, FileError> {
        let mut leases = Vec::new();
        for path in entries(&self.leases())? {
            if path.extension().is_some_and(|e| e == "json") {
                leases.extend(read_json::<Lease>(&path)?);
            }
        }
        Ok(leases)
    }

    /// Removes the folder.
    pub fn remove(&self) -> Result<(), FileError> {
        match fs::remove_dir_all(&self.0) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(FileError::new("removing", &self.0, e)),
        }
    }
}

/// Every network that is kept below `dir`.
pub fn all(dir: &Path) -> Result<Vec<(NetworkId, NetworkDir)>, FileError> {
    let named = entries(dir)?.into_iter().filter_map(|path| {
        let id: NetworkId = path.file_name()?.to_str()?.parse().ok()?;
        Some((id, NetworkDir(path)))
    });
    Ok(named.collect())
}

/// What lies in a folder; nothing when it is not there.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FileError::new("listing", dir, e)),
    };
    listing.map(|entry| entry.map(|e| e.path()).map_err(|e| FileError::new("listing", dir, e))).collect()
}

/// Reads a JSON file; `None` when it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| FileError::new("reading", path, e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("reading", path, e)),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T, mode: u32) -> Result<(), FileError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| FileError::new("writing", path, e.into()))?;
    write_atomic(path, &bytes, mode)
}

/// Writes a file so that a reader, or a crash, finds the old content or the new, never a part. The
/// temporary name starts with a dot: dnsmasq passes over such files.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temp = path.with_file_name(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temp)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_data()?;
        drop(file);
        fs::rename(&temp, path)
    };
    write().map_err(|e| FileError::new("writing", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::xml::domain::tests::network;

    #[test]
    fn a_network_with_its_leases_is_read_back_and_goes_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let spec = network();
        let dir = NetworkDir(root.path().join(spec.network_id.to_string()));
        dir.create().unwrap();
        let record = Record { spec: spec.clone(), suffix: "ab12cd34".into(), complete: true };
        dir.write_record(&record).unwrap();
        let lease = Lease {
            vm_id: VmId::new(),
            nic_id: NicId::new(),
            mac: "52:54:00:12:34:56".into(),
            ip: "10.77.0.10".parse().unwrap(),
            hostname: "web".into(),
        };
        assert!(!dir.write_lease(&lease).unwrap());
        assert!(!dir.write_lease(&lease).unwrap());
        let moved = Lease { ip: "10.77.0.11".parse().unwrap(), ..lease.clone() };
        assert!(dir.write_lease(&moved).unwrap());
        let found = all(root.path()).unwrap();
        assert_eq!(found[0].0, spec.network_id);
        assert_eq!(found[0].1.record().unwrap(), Some(record));
        assert_eq!(found[0].1.all_leases().unwrap(), vec![moved]);
        assert!(dir.remove_lease(lease.nic_id).unwrap());
        assert!(!dir.remove_lease(lease.nic_id).unwrap());
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(all(root.path()).unwrap().is_empty());
    }
}
