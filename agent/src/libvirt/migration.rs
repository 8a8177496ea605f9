//! Moving a domain to another host by libvirt: the two libvirts speak to each other (peer to peer), over the
//! sockets that they are told of. A migration takes as long as it takes: it has a thread of its own, and
//! neither one of the pool's nor the VM's lane, so that it can be looked at and ended meanwhile.

use shared::id::VmId;
use shared::wire::vm::{PowerState, Whereabouts};
use virt::connect::Connect;
use virt::domain::{DomainPausedReason, DomainState, DomainStateReason, MigrateParameters};
use virt::enumutil::Enum;
use virt::error::ErrorNumber;
use virt::sys;

use super::Error;
use super::calls::{domain, failed, find, is_active, power_of};

/// One migration, as libvirt is told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// The other libvirt.
    pub libvirt_uri: String,
    /// Where guest memory goes.
    pub memory_uri: String,
    /// Where disks go.
    pub disks_uri: String,
    /// Devices of the disks that are copied: those that the other host does not see.
    pub copied: Vec<String>,
    /// Values in the definition that are others on the other host.
    pub replace: Vec<(String, String)>,
}

impl Migration {
    /// A definition as it is on the other host: whole values only are replaced.
    fn translate(&self, xml: &str) -> String {
        let mut text = xml.to_string();
        for (here, there) in &self.replace {
            for quote in ['\'', '"'] {
                text = text.replace(&format!("{quote}{here}{quote}"), &format!("{quote}{there}{quote}"));
            }
        }
        text
    }
}

/// Moves a domain; returns when it has moved or has not. Blocks for as long as that takes.
pub fn migrate(connect: &Connect, vm_id: VmId, migration: &Migration) -> Result<(), Error> {
    let domain = domain(connect, vm_id)?;
    let mut flags = sys::VIR_MIGRATE_LIVE
        | sys::VIR_MIGRATE_PEER2PEER
        | sys::VIR_MIGRATE_PERSIST_DEST
        | sys::VIR_MIGRATE_UNDEFINE_SOURCE
        | sys::VIR_MIGRATE_ABORT_ON_ERROR
        | sys::VIR_MIGRATE_AUTO_CONVERGE
        // libvirt knows few file systems as shared; what is shared is checked before.
        | sys::VIR_MIGRATE_UNSAFE;
    let mut parameters = MigrateParameters { uri: Some(migration.memory_uri.clone()), ..Default::default() };
    if !migration.copied.is_empty() {
        flags |= sys::VIR_MIGRATE_NON_SHARED_INC;
        parameters.disks_uri = Some(migration.disks_uri.clone());
        parameters.migrate_disks = migration.copied.clone();
    }
    if !migration.replace.is_empty() {
        let read = |flags| domain.xml_desc(flags).map_err(|e| failed("read the domain", &e));
        parameters.dest_xml =
            Some(migration.translate(&read(sys::VIR_DOMAIN_XML_MIGRATABLE | sys::VIR_DOMAIN_XML_SECURE)?));
        parameters.persist_xml =
            Some(migration.translate(&read(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE)?));
    }
    domain.migrate_to_uri3(Some(&migration.libvirt_uri), parameters, flags).map_err(|e| failed("move the domain", &e))
}

/// How far a migration of a domain is, in percent; `None` when none is under way.
pub fn progress(connect: &Connect, vm_id: VmId) -> Result<Option<u8>, Error> {
    let Some(domain) = find(connect, vm_id)? else { return Ok(None) };
    let job = match domain.job_info() {
        Ok(job) => job,
        // It does not run.
        Err(error) if error.code().is(ErrorNumber::OperationInvalid) || error.code().is(ErrorNumber::NoDomain) => {
            return Ok(None);
        }
        Err(error) => return Err(failed("ask how far the migration is", &error)),
    };
    if u32::try_from(job.r#type).unwrap_or_default() == sys::VIR_DOMAIN_JOB_NONE {
        return Ok(None);
    }
    let (total, left) = (job.data_total.unwrap_or(0), job.data_remaining.unwrap_or(0));
    let done = total.saturating_sub(left).saturating_mul(100).checked_div(total).unwrap_or(0);
    Ok(Some(u8::try_from(done.min(100)).unwrap_or(100)))
}

/// Where a domain is in a migration.
pub fn whereabouts(connect: &Connect, vm_id: VmId) -> Result<Whereabouts, Error> {
    let gone = Whereabouts { power: None, moving: false };
    let Some(domain) = find(connect, vm_id)? else { return Ok(gone) };
    let (state, reason) = domain.state().map_err(|e| failed("read the state", &e))?;
    let waits = |reason: &Enum<DomainPausedReason, u32>| {
        [
            DomainPausedReason::Migration,
            DomainPausedReason::StartingUp,
            DomainPausedReason::PostCopy,
            DomainPausedReason::PostCopyFailed,
        ]
        .into_iter()
        .any(|r| reason.is(r))
    };
    let sent = match &reason {
        Enum::Known(DomainStateReason::Paused(reason)) => state.is(DomainState::Paused) && waits(reason),
        _ => false,
    };
    let power = match power_of(state, reason) {
        Some(_) if sent => PowerState::Paused,
        Some(power) => power,
        None => return Ok(gone),
    };
    // One that is sent runs on until the very end, one that comes in is halted until then.
    let comes = power == PowerState::Paused && is_active(&domain)? && progress(connect, vm_id)?.is_some();
    Ok(Whereabouts { power: Some(power), moving: sent || comes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_values_are_replaced() {
        let migration = Migration {
            replace: vec![("kr-1".into(), "kr-2".into()), ("/a/seed.img".into(), "/b/seed.img".into())],
            ..Migration::default()
        };
        let xml =
            "<source bridge='kr-1'/><source bridge=\"kr-1\"/><source bridge='kr-10'/><source file='/a/seed.img'/>";
        let expected =
            "<source bridge='kr-2'/><source bridge=\"kr-2\"/><source bridge='kr-10'/><source file='/b/seed.img'/>";
        assert_eq!(migration.translate(xml), expected);
    }
}
