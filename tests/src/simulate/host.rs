//! The hosts: they do what a command says, once a task, unless a newer generation has acted on the resource.

use std::collections::BTreeMap;

use shared::Code;
use shared::fence::Fence;
use uuid::Uuid;

use super::Flaw;

/// A command, as a controller sends it. A resource has a value, which commands change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) resource: Uuid,
    /// The same for the same try of the same step, whoever sends it.
    pub(super) task: (u32, usize, bool, u32),
    pub(super) generation: u64,
    /// Counts the commands of a controller.
    pub(super) sequence: u64,
    /// The value that the resource has afterwards; 0: it is removed.
    pub(super) value: u32,
    /// Whether the host cannot do it.
    pub(super) fails: bool,
}

/// All hosts: what one does says nothing of the others.
#[derive(Default)]
pub(super) struct Hosts {
    fences: BTreeMap<Uuid, Fence>,
    done: BTreeMap<(u32, usize, bool, u32), Result<(), Code>>,
    /// What the resources are.
    pub(super) values: BTreeMap<Uuid, u32>,
    /// Commands that were refused as stale.
    pub(super) refused: usize,
}

impl Hosts {
    /// A command arrives. The outer error says that it was not taken.
    pub(super) fn take(&mut self, command: &Command, flaw: Option<Flaw>) -> Result<Result<(), Code>, Code> {
        let fence = self.fences.entry(command.resource).or_default();
        let done = self.done.get(&command.task).copied();
        let sequence = (flaw != Some(Flaw::NobodyCounts)).then_some(command.sequence);
        let admitted = match done {
            Some(_) => fence.admit_again(command.generation),
            None => fence.admit(command.generation, sequence),
        };
        if admitted.is_err() && flaw != Some(Flaw::HostsTakeAll) {
            self.refused += 1;
            return Err(Code::StaleGeneration);
        }
        if let Some(done) = done {
            return Ok(done);
        }
        let done = if command.fails {
            Err(Code::HostFailed)
        } else {
            self.values.insert(command.resource, command.value);
            Ok(())
        };
        self.done.insert(command.task, done);
        Ok(done)
    }
}
