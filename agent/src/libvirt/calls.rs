//! Single calls to libvirt, as plain functions that block: they run on the pool's threads and on the
//! watching thread, never on the async runtime.

use shared::id::VmId;
use shared::wire::vm::{PowerState, VmReport};
use virt::connect::Connect;
use virt::domain::{
    Domain, DomainPausedReason, DomainShutoffReason, DomainState, DomainStateReason, DomainStateReasonEnum,
};
use virt::enumutil::Enum;
use virt::error::{ErrorDomain, ErrorNumber};
use virt::sys;

use super::metadata::{Identity, NAMESPACE, PREFIX};
use super::xml::domain::DomainSpec;
use super::xml::read::DomainXml;
use super::{Consoles, Error, Listing, ShutdownBy, Versions, filters};

const ELEMENT: i32 = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;

/// What an error of libvirt means to the agent.
pub fn failed(call: &'static str, error: &virt::error::Error) -> Error {
    let message = error.message().to_string();
    // A connection that breaks shows as an error of the transport, whatever the call was.
    if error.domain().is(ErrorDomain::Rpc) {
        return Error::Unreachable { reason: message };
    }
    match error.code().known() {
        Some(ErrorNumber::NoConnect | ErrorNumber::InvalidConn) => Error::Unreachable { reason: message },
        Some(ErrorNumber::OperationInvalid) => Error::WrongState { call, message },
        Some(
            ErrorNumber::AgentUnresponsive
            | ErrorNumber::AgentUnsynced
            | ErrorNumber::AgentCommandTimeout
            | ErrorNumber::AgentCommandFailed,
        ) => Error::GuestAgent(message),
        _ => Error::Failed { call, message },
    }
}

fn is_gone(error: &virt::error::Error) -> bool {
    error.code().is(ErrorNumber::NoDomain)
}

/// The domain with a VM's id, whosever it is.
fn lookup(connect: &Connect, vm_id: VmId) -> Result<Option<Domain>, Error> {
    match connect.lookup_domain_by_uuid(shared::id::ResourceId::uuid(vm_id)) {
        Ok(domain) => Ok(Some(domain)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(failed("look the domain up", &error)),
    }
}

/// A VM's domain; `None` when there is none. Every call that changes something comes through here, so
/// that a domain without Kring's metadata is never touched.
pub fn find(connect: &Connect, vm_id: VmId) -> Result<Option<Domain>, Error> {
    match lookup(connect, vm_id)? {
        Some(domain) if raw_identity(&domain)?.is_some() => Ok(Some(domain)),
        Some(_) | None => Ok(None),
    }
}

/// A VM's domain, which must be there.
pub fn domain(connect: &Connect, vm_id: VmId) -> Result<Domain, Error> {
    find(connect, vm_id)?.ok_or(Error::NoDomain(vm_id))
}

/// Whether there is a domain of a VM's id, whosever it is.
pub fn is_defined(connect: &Connect, vm_id: VmId) -> Result<bool, Error> {
    lookup(connect, vm_id).map(|domain| domain.is_some())
}

/// Whether a VM's domain is there and in a state.
pub fn is_in(connect: &Connect, vm_id: VmId, power: PowerState) -> Result<bool, Error> {
    report(connect, vm_id).map(|report| report.is_some_and(|r| r.power == power))
}

/// What libvirt's state means to the controller.
pub fn power_of(state: Enum<DomainState, u32>, reason: DomainStateReasonEnum) -> Option<PowerState> {
    let Enum::Known(state) = state else { return None };
    let reason = if let Enum::Known(reason) = reason { Some(reason) } else { None };
    Some(match state {
        // A state that the driver does not tell is no state at all.
        DomainState::NoState => return None,
        // "Shutdown" is a guest that is on its way down: it still runs.
        DomainState::Running | DomainState::Blocked | DomainState::Shutdown => PowerState::Running,
        DomainState::Paused => match reason {
            Some(DomainStateReason::Paused(reason)) if reason.is(DomainPausedReason::Crashed) => PowerState::Crashed,
            // A domain is created with its processors halted and let go a moment later.
            Some(DomainStateReason::Paused(reason)) if reason.is(DomainPausedReason::StartingUp) => PowerState::Running,
            _ => PowerState::Paused,
        },
        DomainState::PMSuspended => PowerState::Paused,
        DomainState::Shutoff => match reason {
            Some(DomainStateReason::Shutoff(reason)) if reason.is(DomainShutoffReason::Crashed) => PowerState::Crashed,
            _ => PowerState::Stopped,
        },
        DomainState::Crashed => PowerState::Crashed,
    })
}

/// The power state; `None` when the domain went away meanwhile.
fn power(connect: &Connect, vm_id: VmId, domain: &Domain) -> Result<Option<PowerState>, Error> {
    let (state, reason) = domain.state().map_err(|e| failed("read the state", &e))?;
    if let Some(power) = power_of(state, reason) {
        return Ok(Some(power));
    }
    // The wrapper hides that the call failed: ask again in a way that tells.
    match lookup(connect, vm_id)? {
        None => Ok(None),
        Some(_) => Err(Error::Unreadable { call: "read the state", why: format!("state {}", state.to_raw()) }),
    }
}

/// The metadata that Kring wrote; `None` when the domain has none, or is gone.
fn raw_identity(domain: &Domain) -> Result<Option<String>, Error> {
    match domain.metadata(ELEMENT, Some(NAMESPACE), 0) {
        Ok(xml) => Ok(Some(xml)),
        Err(error) if is_gone(&error) || error.code().is(ErrorNumber::NoDomainMetadata) => Ok(None),
        Err(error) => Err(failed("read the metadata", &error)),
    }
}

/// What a domain says of itself; `None` when it is not Kring's.
pub fn identity(domain: &Domain) -> Result<Option<Identity>, Error> {
    let Some(xml) = raw_identity(domain)? else { return Ok(None) };
    Identity::parse(&xml).map(Some).map_err(|e| Error::Unreadable {
        call: "read the metadata",
        why: shared::Error::internal("").caused_by(&e).chain(),
    })
}

/// One VM as it is now; `None` when there is no such domain, or it is not Kring's.
pub fn report(connect: &Connect, vm_id: VmId) -> Result<Option<VmReport>, Error> {
    match lookup(connect, vm_id)? {
        Some(domain) => report_of(connect, vm_id, &domain),
        None => Ok(None),
    }
}

fn report_of(connect: &Connect, vm_id: VmId, domain: &Domain) -> Result<Option<VmReport>, Error> {
    let Some(xml) = raw_identity(domain)? else { return Ok(None) };
    let Some(power) = power(connect, vm_id, domain)? else { return Ok(None) };
    let generation = match Identity::parse(&xml) {
        Ok(identity) => identity.generation,
        Err(error) => {
            // It is Kring's all the same; one bad domain must not hide the others.
            tracing::error!(vm.id = %vm_id, error = %error, "a domain's metadata cannot be read");
            0
        }
    };
    Ok(Some(VmReport { vm_id, power, generation }))
}

fn all_domains(connect: &Connect) -> Result<Vec<Domain>, Error> {
    connect.list_all_domains(0).map_err(|e| failed("list the domains", &e))
}

fn vm_id_of(domain: &Domain) -> Result<VmId, Error> {
    domain.uuid().map(VmId::from_uuid).map_err(|e| failed("read the uuid", &e))
}

/// Every domain of the host.
pub fn list(connect: &Connect) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    for domain in all_domains(connect)? {
        match report_of(connect, vm_id_of(&domain)?, &domain)? {
            Some(report) => listing.vms.push(report),
            None if domain.is_active().unwrap_or(false) => {
                listing.foreign.push(domain.name().map_err(|e| failed("read the name", &e))?);
            }
            None => {}
        }
    }
    Ok(listing)
}

/// What every domain of Kring says of itself; one that cannot be read is left out, with a log line.
pub fn identities(connect: &Connect) -> Result<Vec<Identity>, Error> {
    let mut identities = Vec::new();
    for domain in all_domains(connect)? {
        match identity(&domain) {
            Ok(identity) => identities.extend(identity),
            Err(error @ Error::Unreadable { .. }) => {
                tracing::error!(vm.id = %vm_id_of(&domain)?, error = %error, "a domain's metadata cannot be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(identities)
}

/// Writes the metadata, into the running domain and into its definition.
pub fn set_identity(domain: &Domain, identity: &Identity) -> Result<(), Error> {
    let mut flags = sys::VIR_DOMAIN_AFFECT_CONFIG;
    if is_active(domain)? {
        flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
    }
    let xml = identity.bare_element().render();
    domain
        .set_metadata(ELEMENT, Some(&xml), Some(PREFIX), Some(NAMESPACE), flags)
        .map_err(|e| failed("write the metadata", &e))
}

/// Records a generation, unless a newer one is recorded.
pub fn set_generation(connect: &Connect, vm_id: VmId, generation: u64) -> Result<(), Error> {
    let domain = domain(connect, vm_id)?;
    let Some(mut identity) = identity(&domain)? else { return Err(Error::NoDomain(vm_id)) };
    if identity.generation >= generation {
        return Ok(());
    }
    identity.generation = generation;
    set_identity(&domain, &identity)
}

pub fn is_active(domain: &Domain) -> Result<bool, Error> {
    domain.is_active().map_err(|e| failed("ask whether the domain runs", &e))
}

/// Defines a domain, after the filter that its cards refer to.
pub fn define(connect: &Connect, spec: &DomainSpec) -> Result<(), Error> {
    if spec.nics.iter().any(|nic| nic.filtered) {
        filters::ensure(connect)?;
    }
    define_xml(connect, spec.vm.vm_id, &spec.render())
}

/// Defines a domain of Kring's from its XML.
pub fn define_xml(connect: &Connect, vm_id: VmId, xml: &str) -> Result<(), Error> {
    if let Some(existing) = lookup(connect, vm_id)?
        && raw_identity(&existing)?.is_none()
    {
        let name = existing.name().unwrap_or_default();
        return Err(Error::Foreign { name, why: "it has the VM's id and no metadata of Kring".into() });
    }
    connect.define_domain_xml(xml).map(|_| ()).map_err(|e| failed("define the domain", &e))
}

pub fn start(connect: &Connect, vm_id: VmId) -> Result<(), Error> {
    let domain = domain(connect, vm_id)?;
    if is_active(&domain)? {
        return Ok(());
    }
    domain.create().map_err(|e| failed("start the domain", &e))
}

pub fn shutdown(connect: &Connect, vm_id: VmId, by: ShutdownBy) -> Result<(), Error> {
    let domain = domain(connect, vm_id)?;
    if !is_active(&domain)? {
        return Ok(());
    }
    if by == ShutdownBy::Any && read(&domain, 0)?.guest_agent_connected() {
        match domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_GUEST_AGENT) {
            Ok(_) => return Ok(()),
            Err(error) => tracing::info!(vm.id = %vm_id, error = %error, "the guest agent did not shut the guest down"),
        }
    }
    match domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) {
        Ok(_) => Ok(()),
        // It may have ended a moment ago.
        Err(_) if !is_active(&domain)? => Ok(()),
        Err(error) => Err(failed("shut the domain down", &error)),
    }
}

pub fn destroy(connect: &Connect, vm_id: VmId) -> Result<(), Error> {
    let Some(domain) = find(connect, vm_id)? else { return Ok(()) };
    if !is_active(&domain)? {
        return Ok(());
    }
    match domain.destroy() {
        Ok(()) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(_) if !is_active(&domain).unwrap_or(true) => Ok(()),
        Err(error) => Err(failed("end the domain", &error)),
    }
}

/// A VM's domain, which must be running or paused.
fn active(connect: &Connect, vm_id: VmId, call: &'static str) -> Result<Domain, Error> {
    let domain = domain(connect, vm_id)?;
    if is_active(&domain)? { Ok(domain) } else { Err(Error::WrongState { call, message: "it does not run".into() }) }
}

pub fn suspend(connect: &Connect, vm_id: VmId) -> Result<(), Error> {
    let domain = active(connect, vm_id, "halt the domain")?;
    if power(connect, vm_id, &domain)? == Some(PowerState::Paused) {
        return Ok(());
    }
    domain.suspend().map_err(|e| failed("halt the domain", &e))
}

pub fn resume(connect: &Connect, vm_id: VmId) -> Result<(), Error> {
    let domain = active(connect, vm_id, "let the domain run on")?;
    let (state, _) = domain.state().map_err(|e| failed("read the state", &e))?;
    if state.is(DomainState::PMSuspended) {
        return domain.pm_wakeup(0).map_err(|e| failed("wake the guest up", &e));
    }
    if state.is(DomainState::Running) || state.is(DomainState::Blocked) {
        return Ok(());
    }
    domain.resume().map_err(|e| failed("let the domain run on", &e))
}

pub fn undefine(connect: &Connect, vm_id: VmId) -> Result<(), Error> {
    let Some(domain) = find(connect, vm_id)? else { return Ok(()) };
    // Everything that libvirt keeps beside the definition goes with it, the firmware's variables too.
    let most = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA;
    let all = most | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | sys::VIR_DOMAIN_UNDEFINE_NVRAM;
    let undefined = match domain.undefine_flags(all) {
        // A driver that has no firmware and no checkpoints does not take the flags for them.
        Err(error) if error.code().is(ErrorNumber::InvalidArg) => domain.undefine_flags(most),
        other => other,
    };
    match undefined {
        Ok(()) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(failed("undefine the domain", &error)),
    }
}

/// A domain's XML, read. `flags` 0 is the domain as it is, `VIR_DOMAIN_XML_INACTIVE` its definition.
pub fn read(domain: &Domain, flags: sys::virDomainXMLFlags) -> Result<DomainXml, Error> {
    let xml = domain.xml_desc(flags).map_err(|e| failed("read the domain", &e))?;
    DomainXml::parse(&xml).map_err(|e| Error::Unreadable { call: "read the domain", why: e.to_string() })
}

pub fn dumpxml(connect: &Connect, vm_id: VmId) -> Result<String, Error> {
    domain(connect, vm_id)?.xml_desc(0).map_err(|e| failed("read the domain", &e))
}

pub fn consoles(connect: &Connect, vm_id: VmId) -> Result<Consoles, Error> {
    let domain = domain(connect, vm_id)?;
    if !is_active(&domain)? {
        return Ok(Consoles::default());
    }
    let xml = read(&domain, 0)?;
    Ok(Consoles { serial: xml.serial_path().map(str::to_string), vnc_port: xml.vnc_port() })
}

pub fn disk_paths(connect: &Connect) -> Result<Vec<std::path::PathBuf>, Error> {
    let mut paths = Vec::new();
    for domain in all_domains(connect)? {
        if !is_active(&domain)? {
            continue;
        }
        let disks = read(&domain, 0)?.devices.disk;
        paths.extend(disks.into_iter().filter_map(|d| d.source?.file).map(std::path::PathBuf::from));
    }
    Ok(paths)
}

pub fn versions(connect: &Connect) -> Result<Versions, Error> {
    let text = |n: u32| format!("{}.{}.{}", n / 1_000_000, n / 1000 % 1000, n % 1000);
    Ok(Versions {
        libvirt: text(connect.lib_version().map_err(|e| failed("ask for its version", &e))?),
        qemu: text(connect.hyp_version().map_err(|e| failed("ask for the version of QEMU", &e))?),
    })
}

#[cfg(test)]
mod tests;
