//! What became of everything that was accepted: the history of the API and of the agents, compared with the
//! database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use shared::error::Code;
use shared::id::{HostId, TaskId};
use shared::state::job::JobState;
use uuid::Uuid;

use super::{Api, Fleet};
use crate::sim::{Action, Fate, Note, Sim};
use crate::snapshot::Database;

/// Sums since the histories began, and every breach.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Jobs that were accepted.
    pub accepted: usize,
    /// Of these, done.
    pub done: usize,
    /// Of these, rolled back.
    pub rolled_back: usize,
    /// Accepted, and in no row.
    pub lost: usize,
    /// Accepted, and not ended.
    pub stuck: usize,
    /// Ended twice, or one request that became two jobs.
    pub doubled: usize,
    /// Commands that agents refused because a newer generation had acted.
    pub stale_refused: usize,
    /// Commands that agents took although a newer generation had acted.
    pub stale_accepted: usize,
    /// Commands about a VM that began while one of an older generation was being carried out.
    pub overlapping: usize,
    /// Commands that agents took.
    pub commands: usize,
    /// Answers that blame the controller itself (`internal` and its like).
    pub blamed: usize,
    /// Every breach in words.
    pub breaches: Vec<String>,
}

/// Where a task is worked on by a process of an agent, and what it is.
type Running = BTreeMap<(TaskId, Uuid), (HostId, String)>;

/// What the hosts do, while their history is read.
#[derive(Default)]
struct Watch {
    /// The newest generation that has commanded a VM.
    newest: HashMap<Uuid, u64>,
    /// The generation of each task.
    generations: HashMap<TaskId, u64>,
    /// What is being done about each VM, by which process of an agent, and where.
    running: HashMap<Uuid, Running>,
}

impl Watch {
    fn raise(&mut self, action: &Action) {
        let generation = self.generations.entry(action.task).or_default();
        *generation = (*generation).max(action.generation);
    }
}

impl Tally {
    /// Looks at the fleet as it is now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn take(fleet: &Fleet) -> anyhow::Result<Self> {
        Self::of(&fleet.database, &fleet.api, &fleet.sim).await
    }

    /// The same, of a database, a user and hosts, however many controllers there are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn of(database: &Database, api: &Api, sim: &Sim) -> anyhow::Result<Self> {
        let mut tally = Self::default();
        tally.requests(database, api).await?;
        let mut watch = Watch::default();
        sim.history().notes().iter().for_each(|note| tally.look_at(&mut watch, note));
        Ok(tally)
    }

    async fn requests(&mut self, database: &Database, api: &Api) -> anyhow::Result<()> {
        let states: BTreeMap<String, String> = database.pairs("SELECT id, state FROM job").await?.into_iter().collect();
        let ends: BTreeMap<String, String> = database.ends_of_jobs().await?.into_iter().collect();
        for called in api.history() {
            let jobs: BTreeSet<_> = called.jobs.iter().map(ToString::to_string).collect();
            if jobs.len() > 1 {
                self.doubled += 1;
                self.breaches.push(format!("{} became {} jobs: {jobs:?}", called.what, jobs.len()));
            }
            if matches!(called.refused, Some(Code::Internal | Code::Unknown))
                && let Some((_, text)) = called.failures.last()
            {
                self.blamed += 1;
                self.breaches.push(format!("{}: {text}", called.what));
            }
            for job in jobs {
                self.accepted += 1;
                let state = states.get(&job).map(|state| state.parse::<JobState>());
                match state {
                    None => {
                        self.lost += 1;
                        self.breaches.push(format!("job {job} of {} is in no row", called.what));
                        continue;
                    }
                    Some(Ok(JobState::Succeeded)) => self.done += 1,
                    Some(Ok(state)) if state.is_final() => self.rolled_back += 1,
                    Some(state) => {
                        self.stuck += 1;
                        self.breaches.push(format!("job {job} of {} is {state:?}", called.what));
                        continue;
                    }
                }
                let n = ends.get(&job).map_or("0", String::as_str);
                if n != "1" {
                    self.doubled += 1;
                    self.breaches.push(format!("job {job} of {} ended {n} times", called.what));
                }
            }
        }
        Ok(())
    }

    /// Compares what happened on a host with what had happened before, on all hosts.
    fn look_at(&mut self, watch: &mut Watch, note: &Note) {
        match note {
            Note::Command(action) => self.command(watch, action),
            Note::Began { host, agent_id, resource, path, task } if path.starts_with("vm/") => {
                let generation = watch.generations.get(task).copied().unwrap_or(0);
                let running = watch.running.entry(*resource).or_default();
                for ((other, _), (on, doing)) in running.iter() {
                    let older = watch.generations.get(other).copied().unwrap_or(0);
                    if older < generation {
                        self.overlapping += 1;
                        self.breaches.push(format!(
                            "{path} of {resource} (generation {generation}, host {host}) began while {doing} \
                             (generation {older}, host {on}) went on"
                        ));
                    }
                }
                running.insert((*task, *agent_id), (*host, path.clone()));
            }
            Note::Ended { resource, task, agent_id, .. } => {
                watch.running.entry(*resource).or_default().remove(&(*task, *agent_id));
            }
            Note::Restarted(host) => watch.running.values_mut().for_each(|tasks| tasks.retain(|_, (on, _)| on != host)),
            Note::Began { .. } => {}
        }
    }

    fn command(&mut self, watch: &mut Watch, action: &Action) {
        let Action { path, resource, generation, .. } = action;
        match action.fate {
            Fate::Stale => self.stale_refused += 1,
            Fate::ForAnother => {}
            // By the same owner, or by the next one: it is that one's work then.
            Fate::Repeated => watch.raise(action),
            // An image is fetched for many VMs at once, by whoever needs it.
            Fate::Accepted if !path.starts_with("vm/") => self.commands += 1,
            Fate::Accepted => {
                self.commands += 1;
                watch.raise(action);
                let newest = watch.newest.entry(*resource).or_default();
                if generation < newest {
                    self.stale_accepted += 1;
                    self.breaches.push(format!("{path} of {resource}: generation {generation} came after {newest}"));
                }
                *newest = (*newest).max(*generation);
            }
        }
    }

    /// Adds the sums of another one.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.done += other.done;
        self.rolled_back += other.rolled_back;
        self.lost += other.lost;
        self.stuck += other.stuck;
        self.doubled += other.doubled;
        self.stale_refused += other.stale_refused;
        self.stale_accepted += other.stale_accepted;
        self.overlapping += other.overlapping;
        self.commands += other.commands;
        self.blamed += other.blamed;
        self.breaches.extend(other.breaches.iter().cloned());
    }

    /// Nothing was lost, stuck or doubled, and no stale command was taken.
    ///
    /// # Errors
    /// Names every breach.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.breaches.is_empty(), "{}", self.breaches.join("\n"));
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} accepted, {} done, {} rolled back, {} lost, {} stuck, {} doubled; {} commands, {} stale refused, {} stale accepted, {} overlapping",
            self.accepted,
            self.done,
            self.rolled_back,
            self.lost,
            self.stuck,
            self.doubled,
            self.commands,
            self.stale_refused,
            self.stale_accepted,
            self.overlapping
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_while_an_older_generation_works_on_the_vm_is_a_breach() {
        let (resource, hosts) = (Uuid::new_v4(), [HostId::new(), HostId::new()]);
        let (old, new) = (TaskId::new(), TaskId::new());
        let command = |n: usize, task, generation, fate| {
            Note::Command(Action { host: hosts[n], resource, path: "vm/stop".into(), task, generation, fate })
        };
        let (agent_id, next_agent) = (Uuid::new_v4(), Uuid::new_v4());
        let began = |n: usize, task| Note::Began { host: hosts[n], agent_id, resource, path: "vm/stop".into(), task };
        let again = Note::Began { host: hosts[0], agent_id: next_agent, resource, path: "vm/stop".into(), task: old };
        let ended = |n: usize, task| Note::Ended { host: hosts[n], agent_id, resource, task };
        let overlapping = |notes: &[Note]| {
            let (mut tally, mut watch) = (Tally::default(), Watch::default());
            notes.iter().for_each(|note| tally.look_at(&mut watch, note));
            (tally.overlapping, tally.breaches.len())
        };
        let begin = [command(0, old, 3, Fate::Accepted), began(0, old), command(1, new, 4, Fate::Accepted)];
        let then = |more: &[Note]| overlapping(&[&begin, more].concat());
        assert_eq!(then(&[began(1, new), ended(0, old)]), (1, 1));
        assert_eq!(then(&[ended(0, old), began(1, new)]), (0, 0));
        assert_eq!(then(&[Note::Restarted(hosts[0]), began(1, new), ended(0, old)]), (0, 0), "it ended with its agent");
        let resent = [Note::Restarted(hosts[0]), again, ended(0, old), began(1, new)];
        assert_eq!(then(&resent), (1, 1), "the agent's next life works on it, whatever of the last one ends late");
        assert_eq!(then(&[command(0, old, 4, Fate::Repeated), began(1, new)]), (0, 0), "it is the next owner's now");
    }
}
