//! The calls against libvirt's own test driver.

use super::*;
use crate::libvirt::xml::domain::tests::domain as spec;
use virt::domain::DomainPausedReasonEnum;

#[test]
fn every_state_of_libvirt_is_a_state_of_power_or_unknown() {
    let unknown = || DomainStateReasonEnum::Unknown(0);
    let paused =
        |reason: u32| DomainStateReasonEnum::Known(DomainStateReason::Paused(DomainPausedReasonEnum::from_raw(reason)));
    let shutoff =
        |reason: DomainShutoffReason| DomainStateReasonEnum::Known(DomainStateReason::Shutoff(Enum::Known(reason)));
    for (state, reason, power) in [
        (sys::VIR_DOMAIN_RUNNING, unknown(), Some(PowerState::Running)),
        (sys::VIR_DOMAIN_BLOCKED, unknown(), Some(PowerState::Running)),
        (sys::VIR_DOMAIN_SHUTDOWN, unknown(), Some(PowerState::Running)),
        (sys::VIR_DOMAIN_PAUSED, unknown(), Some(PowerState::Paused)),
        (sys::VIR_DOMAIN_PAUSED, paused(sys::VIR_DOMAIN_PAUSED_IOERROR), Some(PowerState::Paused)),
        (sys::VIR_DOMAIN_PAUSED, paused(sys::VIR_DOMAIN_PAUSED_STARTING_UP), Some(PowerState::Running)),
        (sys::VIR_DOMAIN_PAUSED, paused(sys::VIR_DOMAIN_PAUSED_CRASHED), Some(PowerState::Crashed)),
        (sys::VIR_DOMAIN_PMSUSPENDED, unknown(), Some(PowerState::Paused)),
        (sys::VIR_DOMAIN_SHUTOFF, unknown(), Some(PowerState::Stopped)),
        (sys::VIR_DOMAIN_SHUTOFF, shutoff(DomainShutoffReason::Destroyed), Some(PowerState::Stopped)),
        (sys::VIR_DOMAIN_SHUTOFF, shutoff(DomainShutoffReason::Failed), Some(PowerState::Stopped)),
        (sys::VIR_DOMAIN_SHUTOFF, shutoff(DomainShutoffReason::Crashed), Some(PowerState::Crashed)),
        (sys::VIR_DOMAIN_CRASHED, unknown(), Some(PowerState::Crashed)),
        (sys::VIR_DOMAIN_NOSTATE, unknown(), None),
        (u32::MAX, unknown(), None),
    ] {
        assert_eq!(power_of(Enum::from_raw(state), reason), power, "{state} {reason:?}");
    }
}

/// A connection to libvirt's own test driver; each has its own domains.
fn connect() -> Connect {
    virt::error::clear_error_callback();
    let xml = "<node><domain type='test'><name>stranger</name><uuid>01939f00-0000-7000-8000-00000000aaaa</uuid>\
               <memory>8192</memory><os><type>hvm</type></os></domain></node>";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.xml");
    std::fs::write(&file, xml).unwrap();
    Connect::open(Some(&format!("test://{}", file.display()))).unwrap()
}

fn xml(spec: &DomainSpec) -> String {
    spec.render().replace("<domain type=\"qemu\">", "<domain type=\"test\">")
}

#[test]
fn a_domain_goes_its_way_and_keeps_its_identity() {
    let (connect, spec) = (connect(), spec());
    let vm_id = spec.vm.vm_id;
    assert_eq!(report(&connect, vm_id).unwrap(), None);
    assert!(matches!(start(&connect, vm_id), Err(Error::NoDomain(id)) if id == vm_id));
    define_xml(&connect, vm_id, &xml(&spec)).unwrap();
    define_xml(&connect, vm_id, &xml(&spec)).unwrap();
    let now = |power, generation| Some(VmReport { vm_id, power, generation });
    assert_eq!(report(&connect, vm_id).unwrap(), now(PowerState::Stopped, 7));
    assert!(matches!(suspend(&connect, vm_id), Err(Error::WrongState { .. })));
    for _ in 0..2 {
        start(&connect, vm_id).unwrap();
    }
    for _ in 0..2 {
        suspend(&connect, vm_id).unwrap();
    }
    assert_eq!(report(&connect, vm_id).unwrap(), now(PowerState::Paused, 7));
    for _ in 0..2 {
        resume(&connect, vm_id).unwrap();
    }
    assert_eq!(report(&connect, vm_id).unwrap(), now(PowerState::Running, 7));
    for _ in 0..2 {
        destroy(&connect, vm_id).unwrap();
    }
    assert_eq!(report(&connect, vm_id).unwrap(), now(PowerState::Stopped, 7));
    for _ in 0..2 {
        undefine(&connect, vm_id).unwrap();
    }
    assert_eq!(report(&connect, vm_id).unwrap(), None);
    destroy(&connect, vm_id).unwrap();
}

#[test]
fn a_generation_only_grows_and_nothing_else_of_the_identity_changes() {
    let (connect, spec) = (connect(), spec());
    let vm_id = spec.vm.vm_id;
    define_xml(&connect, vm_id, &xml(&spec)).unwrap();
    for (generation, recorded) in [(3, 7), (9, 9), (8, 9)] {
        set_generation(&connect, vm_id, generation).unwrap();
        let identity = identity(&find(&connect, vm_id).unwrap().unwrap()).unwrap().unwrap();
        assert_eq!(identity, Identity::of(&spec.vm, recorded));
    }
    assert_eq!(identities(&connect).unwrap().len(), 1);
}

#[test]
fn somebody_elses_domain_is_seen_and_never_touched() {
    let connect = connect();
    let stranger: VmId = "01939f00-0000-7000-8000-00000000aaaa".parse().unwrap();
    assert_eq!(list(&connect).unwrap(), Listing { vms: vec![], foreign: vec!["stranger".into()] });
    destroy(&connect, stranger).unwrap();
    undefine(&connect, stranger).unwrap();
    let mut spec = spec();
    spec.vm.vm_id = stranger;
    assert!(matches!(define_xml(&connect, stranger, &xml(&spec)), Err(Error::Foreign { .. })));
    assert!(matches!(suspend(&connect, stranger), Err(Error::NoDomain(_))));
    assert_eq!(list(&connect).unwrap().foreign.len(), 1);
}

#[test]
fn metadata_that_cannot_be_read_hides_no_domain() {
    let (connect, spec) = (connect(), spec());
    let vm_id = spec.vm.vm_id;
    define_xml(&connect, vm_id, &xml(&spec).replace("generation=\"7\"", "generation=\"seven\"")).unwrap();
    let listing = list(&connect).unwrap();
    assert_eq!(listing.vms, vec![VmReport { vm_id, power: PowerState::Stopped, generation: 0 }]);
    assert!(identities(&connect).unwrap().is_empty());
}
