//! What of libvirt's events is news to the controllers. Rules only, without I/O.
//!
//! The outcome of a command says what its VM does, and libvirt says it as well, often more than once. Events
//! of a VM that a command works on wait for the outcome, and what the controllers know is not sent again:
//! a host on which only Kring acts sends no events at all.

use std::collections::HashMap;

use serde::Deserialize;
use shared::id::VmId;
use shared::wire::event::AgentEvent;
use shared::wire::vm::{PowerState, VmReport};

use crate::task::Outcome;

/// What the controllers know of the VMs here.
#[derive(Debug, Default)]
pub struct News {
    told: HashMap<VmId, PowerState>,
    /// The last event of each VM that a command works on.
    held: HashMap<VmId, AgentEvent>,
}

/// What the outcome of a command tells of its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// What it does.
    Does(PowerState),
    /// That it is not here any more.
    Gone,
    /// Nothing.
    Nothing,
}

impl Told {
    /// Reads it from the outcome of `vm/<verb>`.
    #[must_use]
    pub fn of(path: &str, outcome: &Outcome) -> Self {
        match outcome {
            Ok(_) if path == "vm/delete" => Self::Gone,
            Ok(reply) => VmReport::deserialize(reply).map_or(Self::Nothing, |report| Self::Does(report.power)),
            Err(_) => Self::Nothing,
        }
    }
}

impl News {
    /// libvirt tells something; `busy` when a command works on the VM. Answers what is to be sent now.
    pub fn event(&mut self, event: AgentEvent, busy: bool) -> Option<AgentEvent> {
        let Some(vm_id) = event.vm_id() else { return Some(event) };
        if busy {
            self.held.insert(vm_id, event);
            return None;
        }
        self.held.remove(&vm_id);
        self.unless_told(event)
    }

    /// A command about a VM has ended with this; `busy` when another one works on it. Answers what is to be
    /// sent now, which is what the outcome does not say.
    pub fn ended(&mut self, vm_id: VmId, told: Told, busy: bool) -> Option<AgentEvent> {
        match told {
            Told::Does(power) => {
                self.told.insert(vm_id, power);
            }
            Told::Gone => {
                self.told.remove(&vm_id);
                self.held.retain(|id, event| *id != vm_id || !matches!(event, AgentEvent::VmGone { .. }));
            }
            Told::Nothing => {}
        }
        let held = if busy { None } else { self.held.remove(&vm_id) };
        self.unless_told(held?)
    }

    fn unless_told(&mut self, event: AgentEvent) -> Option<AgentEvent> {
        match &event {
            AgentEvent::VmChanged { vm } => (self.told.insert(vm.vm_id, vm.power) != Some(vm.power)).then_some(event),
            AgentEvent::VmGone { vm_id } => {
                self.told.remove(vm_id);
                Some(event)
            }
            AgentEvent::AgentStarted => Some(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(vm_id: VmId, power: PowerState) -> AgentEvent {
        AgentEvent::VmChanged { vm: VmReport { vm_id, power, generation: 1 } }
    }

    #[test]
    fn what_a_command_did_is_told_by_its_outcome_alone() {
        let (mut news, id) = (News::default(), VmId::new());
        assert_eq!(news.event(changed(id, PowerState::Stopped), true), None);
        assert_eq!(news.event(changed(id, PowerState::Running), true), None);
        assert_eq!(news.ended(id, Told::Does(PowerState::Running), false), None);
        // libvirt is late.
        assert_eq!(news.event(changed(id, PowerState::Running), false), None);
        assert_eq!(news.event(AgentEvent::VmGone { vm_id: id }, true), None);
        assert_eq!(news.ended(id, Told::Gone, false), None);
    }

    #[test]
    fn what_happens_by_itself_is_told_at_once_and_what_happens_under_a_command_after_it() {
        let (mut news, id) = (News::default(), VmId::new());
        let crashed = changed(id, PowerState::Crashed);
        assert_eq!(news.ended(id, Told::Does(PowerState::Running), false), None);
        assert_eq!(news.event(crashed.clone(), false), Some(crashed.clone()));
        assert_eq!(news.event(crashed.clone(), false), None);
        assert_eq!(news.event(changed(id, PowerState::Running), true), None);
        assert_eq!(news.event(crashed.clone(), true), None);
        assert_eq!(news.ended(id, Told::Does(PowerState::Running), true), None, "the next command works on it");
        assert_eq!(news.ended(id, Told::Does(PowerState::Running), false), Some(crashed));
        let gone = AgentEvent::VmGone { vm_id: id };
        assert_eq!(news.event(gone.clone(), false), Some(gone));
        assert_eq!(news.event(changed(id, PowerState::Crashed), false), Some(changed(id, PowerState::Crashed)));
    }

    #[test]
    fn a_failed_command_says_nothing_of_its_vm() {
        let (mut news, id) = (News::default(), VmId::new());
        let running = changed(id, PowerState::Running);
        news.event(running.clone(), true);
        assert_eq!(news.ended(id, Told::Nothing, false), Some(running));
        let failed = Err(shared::Error::internal("x"));
        assert_eq!(Told::of("vm/delete", &failed), Told::Nothing);
        assert_eq!(Told::of("vm/delete", &Ok(json!({}))), Told::Gone);
        assert_eq!(Told::of("vm/attach_volume", &Ok(json!({}))), Told::Nothing);
        let report = VmReport { vm_id: id, power: PowerState::Paused, generation: 3 };
        assert_eq!(Told::of("vm/pause", &Ok(json!(report))), Told::Does(PowerState::Paused));
    }
}
