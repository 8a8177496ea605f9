//! What must never happen, looked at from outside: with everybody's clocks and tables at once.

use std::collections::{BTreeMap, BTreeSet};

use shared::state::job::JobState;
use uuid::Uuid;

use super::host::Command;
use super::world::World;

/// A controller in one of its lives.
pub(super) type Life = (usize, u32);

/// What was seen so far.
#[derive(Default)]
pub(super) struct Check {
    /// Who is busy with a resource: since it began with a request or sent a command.
    busy: BTreeMap<(Uuid, bool), BTreeSet<Life>>,
    /// Newest generation that has acted on a resource.
    newest: BTreeMap<Uuid, u64>,
    generations: BTreeMap<Life, u64>,
    generation: u64,
    pub(super) breaches: Vec<String>,
}

impl World<'_> {
    pub(super) fn breach(&mut self, text: String) {
        self.tell(|| format!("BREACH {text}"));
        let at = self.now;
        self.check.breaches.push(format!("at {at} ms: {text}"));
    }

    /// A controller begins to work on a resource: it must be a member, and no other member may be at it.
    pub(super) fn check_begin(&mut self, n: usize, resource: Uuid, command: bool) {
        let what = if command { "a command" } else { "a request" };
        let me = (n, self.nodes[n].life);
        if !self.is_member(n) {
            self.breach(format!("c{n} begins {what} on {resource} and is no member any more"));
        }
        let busy = self.check.busy.entry((resource, command)).or_default();
        busy.insert(me);
        let others: Vec<_> = busy.iter().filter(|other| **other != me).copied().collect();
        for (other, life) in others {
            if self.nodes[other].life == life && self.nodes[other].up && self.is_member(other) {
                self.breach(format!("c{n} begins {what} on {resource}, and c{other} is at it: two members at once"));
            }
        }
    }

    /// A controller is not at a resource any more.
    pub(super) fn check_end(&mut self, n: usize, resource: Uuid, command: bool) {
        let me = (n, self.nodes[n].life);
        if let Some(busy) = self.check.busy.get_mut(&(resource, command)) {
            busy.remove(&me);
        }
    }

    /// A host has taken a command.
    pub(super) fn check_taken(&mut self, command: &Command) {
        let newest = self.check.newest.entry(command.resource).or_default();
        let before = *newest;
        *newest = before.max(command.generation);
        if command.generation < before {
            let Command { resource, task, generation, .. } = command;
            self.breach(format!(
                "a host takes {task:?} of generation {generation} on {resource} after generation {before}"
            ));
        }
    }

    /// A transaction of a controller is done.
    pub(super) fn check_written(&mut self, n: usize, what: &str, was_member: bool) {
        if !was_member {
            self.breach(format!("c{n} has written {what} and is no member any more"));
        }
        let generation = self.database.generation();
        if generation < self.check.generation {
            self.breach(format!("generation {generation} came after {}", self.check.generation));
        }
        self.check.generation = generation;
    }

    /// A controller follows a ring.
    pub(super) fn check_followed(&mut self, n: usize) {
        let generation = self.nodes[n].view.generation();
        let known = self.check.generations.entry((n, self.nodes[n].life)).or_default();
        let before = std::mem::replace(known, generation);
        if generation < before {
            self.breach(format!("c{n} followed generation {generation} after {before}"));
        }
    }

    /// At rest: everybody is a member, every job has ended once, nothing is owed, and the hosts are as the
    /// jobs have left them.
    pub(super) fn check_rest(&mut self) {
        let members = self.database.all(self.database_now()).controllers;
        if members.len() != self.nodes.len() || members.iter().any(|row| row.settled < self.database.generation()) {
            self.breach(format!("not all are members at rest that have let go: {members:?}"));
        }
        let mut breaches = Vec::new();
        for user in &self.users {
            for (job, before) in &user.history {
                match self.database.jobs.get(job) {
                    None => breaches.push(format!("job {job} was accepted and is lost")),
                    Some(row) if !row.state.is_final() => {
                        breaches.push(format!("job {job} has not ended: {row:?}"));
                    }
                    Some(row) if row.ends != 1 => breaches.push(format!("job {job} ended {} times", row.ends)),
                    Some(row) if !row.owed.is_empty() => breaches.push(format!("job {job} still owes {:?}", row.owed)),
                    Some(row) if user.history.last().is_some_and(|(last, _)| last == job) => {
                        let wanted = if row.state == JobState::Succeeded { *job } else { *before };
                        let value = self.hosts.values.get(&user.resource).copied().unwrap_or(0);
                        if value != wanted {
                            breaches.push(format!(
                                "job {job} is {}, and its host has {value} instead of {wanted}",
                                row.state
                            ));
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        breaches.into_iter().for_each(|text| self.breach(text));
    }
}
