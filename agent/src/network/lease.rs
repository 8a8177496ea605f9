//! Addresses of cards: kept on disk, written for dnsmasq, known to the metadata service.

use std::net::Ipv4Addr;

use shared::id::{NicId, VmId};
use shared::wire::vm::NicSpec;

use super::files::{self, Lease, NetworkDir};
use super::{Error, Networks};
use crate::cloud_init::safe_hostname;

impl Networks {
    /// Gives a card its address. Its network must be set up.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_nic(&self, vm_id: VmId, hostname: &str, nic: &NicSpec) -> Result<(), Error> {
        let lease = Lease {
            vm_id,
            nic_id: nic.nic_id,
            mac: checked_mac(&nic.mac)?,
            ip: nic.ip,
            hostname: safe_hostname(hostname, vm_id),
        };
        if !nic.network.cidr.contains(&nic.ip) {
            return Err(Error::BadAddress { ip: nic.ip, cidr: nic.network.cidr });
        }
        let network_id = nic.network.network_id;
        let live = self.live.lock().await;
        self.inherited().remove(&lease.nic_id);
        let dir = self.network_dir(network_id);
        let (Some(state), Some(record)) = (live.get(&network_id), dir.record()?) else {
            return Err(Error::Unknown(network_id));
        };
        // An address that moved to another VM: the earlier owner's lease must not answer for it.
        let mut stale = false;
        for other in dir.all_leases()?.into_iter().filter(|l| l.ip == lease.ip && l.nic_id != lease.nic_id) {
            stale |= dir.remove_lease(other.nic_id)?;
        }
        stale |= dir.write_lease(&lease)?;
        if let Ok(mut addresses) = state.addresses.write() {
            addresses.retain(|ip, vm| *vm != vm_id || *ip == lease.ip || keeps(&dir, vm_id, *ip));
            addresses.insert(lease.ip, vm_id);
        }
        if stale {
            self.parts(network_id, &record.suffix).dnsmasq.reload();
        }
        Ok(())
    }

    /// Takes the addresses of a VM's cards back, in every network; a success when it has none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_vm(&self, vm_id: VmId) -> Result<(), Error> {
        self.remove_leases(|lease| lease.vm_id == vm_id).await
    }

    /// Takes the address of one card back; a success when it has none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_nic(&self, nic_id: NicId) -> Result<(), Error> {
        self.remove_leases(|lease| lease.nic_id == nic_id).await
    }

    pub(super) async fn remove_leases(&self, which: impl Fn(&Lease) -> bool) -> Result<(), Error> {
        let live = self.live.lock().await;
        for (network_id, dir) in files::all(&self.dir())? {
            let gone: Vec<Lease> = dir.all_leases()?.into_iter().filter(|l| which(l)).collect();
            for lease in &gone {
                dir.remove_lease(lease.nic_id)?;
                if let Some(Ok(mut addresses)) = live.get(&network_id).map(|state| state.addresses.write()) {
                    addresses.remove(&lease.ip);
                }
            }
            if let (false, Some(record)) = (gone.is_empty(), dir.record()?) {
                self.parts(network_id, &record.suffix).dnsmasq.reload();
            }
        }
        Ok(())
    }
}

/// Whether a VM has a lease of this address in the network (it may have two cards there).
fn keeps(dir: &NetworkDir, vm_id: VmId, ip: Ipv4Addr) -> bool {
    dir.all_leases().is_ok_and(|leases| leases.iter().any(|l| l.vm_id == vm_id && l.ip == ip))
}

/// A hardware address as six pairs in lower case: it ends up in dnsmasq's files.
fn checked_mac(mac: &str) -> Result<String, Error> {
    let pairs: Vec<&str> = mac.split(':').collect();
    let good = pairs.len() == 6 && pairs.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
    if good { Ok(mac.to_ascii_lowercase()) } else { Err(Error::BadMac(mac.chars().take(40).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_checked_before_it_reaches_a_file() {
        assert_eq!(checked_mac("52:54:00:AB:cd:ef").unwrap(), "52:54:00:ab:cd:ef");
        for bad in ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "52:54:00:ab:cd:e,", "52:54:00:ab:cd:+f\n"] {
            assert!(checked_mac(bad).is_err(), "{bad}");
        }
    }
}
