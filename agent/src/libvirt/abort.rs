//! Ending a job that is under way in a domain: the one call of libvirt that the safe wrapper leaves out.
#![expect(unsafe_code, reason = "the call is made through virt-sys, because the safe wrapper leaves it out")]

use shared::id::VmId;
use virt::connect::Connect;
use virt::error::{Error as LibvirtError, ErrorNumber};
use virt_sys as sys;

use super::Error;
use super::calls::{failed, find};

/// Ends the migration of a domain; a success when none is under way.
pub fn abort(connect: &Connect, vm_id: VmId) -> Result<(), Error> {
    let Some(domain) = find(connect, vm_id)? else { return Ok(()) };
    // SAFETY: the domain is alive for as long as `domain` is, and the call keeps nothing of it.
    if unsafe { sys::virDomainAbortJob(domain.as_ptr()) } >= 0 {
        return Ok(());
    }
    let error = LibvirtError::last_error();
    match error.code().known() {
        // There is none, or none any more.
        Some(ErrorNumber::OperationInvalid | ErrorNumber::NoDomain) => Ok(()),
        _ => Err(failed("end the migration", &error)),
    }
}
