//! What became of everything that was accepted: the history of the API and of the agents, compared with the
//! database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use shared::error::Code;
use shared::state::job::JobState;

use super::{Api, Fleet};
use crate::sim::{Fate, Sim};
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
    /// Commands that agents took.
    pub commands: usize,
    /// Answers that blame the controller itself (`internal` and its like).
    pub blamed: usize,
    /// Every breach in words.
    pub breaches: Vec<String>,
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
        tally.commands(sim);
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

    fn commands(&mut self, sim: &Sim) {
        let mut newest: HashMap<_, u64> = HashMap::new();
        for action in sim.history().actions() {
            match action.fate {
                Fate::Stale => self.stale_refused += 1,
                Fate::Repeated => {}
                // An image is fetched for many VMs at once, by whoever needs it.
                Fate::Accepted if !action.path.starts_with("vm/") => self.commands += 1,
                Fate::Accepted => {
                    self.commands += 1;
                    let newest = newest.entry(action.resource).or_default();
                    if action.generation < *newest {
                        self.stale_accepted += 1;
                        let (path, resource, generation) = (&action.path, action.resource, action.generation);
                        self.breaches
                            .push(format!("{path} of {resource}: generation {generation} came after {newest}"));
                    }
                    *newest = (*newest).max(action.generation);
                }
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
            "{} accepted, {} done, {} rolled back, {} lost, {} stuck, {} doubled; {} commands, {} stale refused, {} stale accepted",
            self.accepted,
            self.done,
            self.rolled_back,
            self.lost,
            self.stuck,
            self.doubled,
            self.commands,
            self.stale_refused,
            self.stale_accepted
        )
    }
}
