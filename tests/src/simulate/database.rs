//! The tables that several controllers share, as PostgreSQL keeps them: members, generations, jobs. Every
//! function does what one transaction of `controller::db` does; a test plays both beside each other.

use std::collections::BTreeMap;

use controller::db::controller::{ControllerRow, Membership};
use shared::id::ControllerId;
use shared::state::controller::ControllerState;
use shared::state::job::JobState;
use shared::time::Timestamp;
use uuid::Uuid;

/// The transaction is refused: who writes is no member any more, or somebody newer has the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A controller's row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    state: ControllerState,
    joined: u64,
    settled: u64,
    heartbeat_at: u64,
    /// Whether the connection of its heartbeat exists.
    connected: bool,
}

/// A job's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    /// What it works on.
    pub resource: Uuid,
    /// Where it is.
    pub state: JobState,
    /// The step that is next.
    pub step: usize,
    /// Steps that were undone or are owed.
    pub undone: usize,
    /// Steps whose undoing is owed.
    pub owed: Vec<usize>,
    /// Generation of who wrote it last.
    pub generation: u64,
    /// Who has it.
    pub controller: Option<ControllerId>,
    /// How often it was ended.
    pub ends: u32,
}

/// What the journal says after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the job is.
    pub state: JobState,
    /// The step that is next.
    pub step: usize,
    /// Steps that were undone or are owed.
    pub undone: usize,
    /// A step whose undoing is owed from now on.
    pub owed: Option<usize>,
    /// Generation of who writes.
    pub generation: u64,
}

/// All tables. Times are milliseconds of the database's own clock.
#[derive(Clone, Debug, Default)]
pub struct Database {
    generation: u64,
    controllers: BTreeMap<ControllerId, Row>,
    changes: Vec<(u64, Vec<ControllerId>)>,
    /// Jobs by number.
    pub jobs: BTreeMap<u32, JobRow>,
    /// Whether a claim asks who has the job; it always does but where the simulation is shown to notice.
    claims_all: bool,
}

impl Database {
    /// Empty tables. With `claims_all`, whoever wants a job gets it.
    pub(super) fn new(claims_all: bool) -> Self {
        Self { claims_all, ..Self::default() }
    }

    /// The generation of the ring.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    fn record_change(&mut self, generation: u64) {
        let active = self.controllers.iter().filter(|(_, row)| row.state == ControllerState::Active);
        self.changes.push((generation, active.map(|(id, _)| *id).collect()));
    }

    /// Joins, and answers the generation.
    ///
    /// # Errors
    /// While its last life has a connection and is not dead.
    pub fn join(&mut self, id: ControllerId, now: u64) -> Result<u64, Refused> {
        let before = self.all(now).controllers.into_iter().find(|row| row.id == id);
        if before.is_some_and(|row| row.connected && !row.is_dead()) {
            return Err(Refused);
        }
        let generation = self.next_generation();
        for job in self.jobs.values_mut().filter(|job| job.controller == Some(id) && !job.state.is_final()) {
            job.controller = None;
        }
        let state = ControllerState::Joining;
        let row = Row { state, joined: generation, settled: generation, heartbeat_at: now, connected: false };
        self.controllers.insert(id, row);
        self.record_change(generation);
        Ok(generation)
    }

    /// Changes what a controller does, and answers the generation.
    ///
    /// # Errors
    /// When it is gone, or cannot become that.
    pub fn set_state(&mut self, id: ControllerId, state: ControllerState) -> Result<u64, Refused> {
        let before = self.controllers.get(&id).map(|row| row.state).ok_or(Refused)?;
        if !before.can_become(state) {
            return Err(Refused);
        }
        let generation = self.next_generation();
        if let Some(row) = self.controllers.get_mut(&id) {
            row.state = state;
            if state == ControllerState::Active {
                row.settled = generation;
            }
        }
        self.record_change(generation);
        Ok(generation)
    }

    /// Notes that a controller has let go of what it does not own in `generation`.
    pub fn settle(&mut self, id: ControllerId, joined: u64, generation: u64) {
        if let Some(row) = self.controllers.get_mut(&id).filter(|row| row.joined == joined) {
            row.settled = row.settled.max(generation);
        }
    }

    /// Leaves.
    pub fn leave(&mut self, id: ControllerId, joined: u64) {
        let generation = self.next_generation();
        if self.is_member(id, joined) {
            self.controllers.remove(&id);
            self.record_change(generation);
        }
    }

    /// Touches the row of a controller; false when it is gone.
    pub fn touch(&mut self, id: ControllerId, joined: u64, now: u64) -> bool {
        let row = self.controllers.get_mut(&id).filter(|row| row.joined == joined);
        row.map(|row| row.heartbeat_at = now).is_some()
    }

    /// The connection of a heartbeat comes or goes.
    pub fn connect(&mut self, id: ControllerId, joined: u64, connected: bool) {
        if let Some(row) = self.controllers.get_mut(&id).filter(|row| row.joined == joined) {
            row.connected = connected;
        }
    }

    /// Lets the silence of those who were heard of in the future begin now.
    pub fn count_from_now(&mut self, now: u64) {
        self.controllers.values_mut().for_each(|row| row.heartbeat_at = row.heartbeat_at.min(now));
    }

    /// Lets a controller have been silent for longer.
    pub fn age(&mut self, id: ControllerId, by: u64) {
        if let Some(row) = self.controllers.get_mut(&id) {
            row.heartbeat_at = row.heartbeat_at.saturating_sub(by);
        }
    }

    /// Whether a controller is still the member that joined then: what is asked before each write.
    #[must_use]
    pub fn is_member(&self, id: ControllerId, joined: u64) -> bool {
        self.controllers.get(&id).is_some_and(|row| row.joined == joined)
    }

    /// Everybody, and the generation.
    #[must_use]
    pub fn all(&self, now: u64) -> Membership {
        let row = |(id, row): (&ControllerId, &Row)| ControllerRow {
            id: *id,
            addresses: Vec::new(),
            version: String::new(),
            state: row.state,
            joined: row.joined,
            settled: row.settled,
            started_at: Timestamp(0),
            heartbeat_at: row.heartbeat_at.cast_signed(),
            silent_ms: now.cast_signed() - row.heartbeat_at.cast_signed(),
            connected: row.connected,
        };
        Membership { generation: self.generation, controllers: self.controllers.iter().map(row).collect() }
    }

    /// Removes a controller that was seen to be dead, unless it has shown life since. Answers whether it did.
    pub fn bury(&mut self, dead: &ControllerRow, now: u64) -> bool {
        let rows = self.all(now).controllers;
        let still = rows.iter().any(|row| row.is_still_dead(dead));
        if still {
            let generation = self.next_generation();
            self.controllers.remove(&dead.id);
            self.record_change(generation);
        }
        still
    }

    /// The last ring before `generation`.
    #[must_use]
    pub fn change_before(&self, generation: u64) -> Option<(u64, Vec<ControllerId>)> {
        self.changes.iter().rev().find(|(at, _)| *at < generation).cloned()
    }

    /// Accepts a job whose first step is recorded; the one that is there already stays.
    pub fn insert(&mut self, job: u32, resource: Uuid, controller: ControllerId, generation: u64) {
        self.jobs.entry(job).or_insert(JobRow {
            resource,
            state: JobState::Queued,
            step: 1,
            undone: 0,
            owed: Vec::new(),
            generation,
            controller: Some(controller),
            ends: 0,
        });
    }

    /// Takes a job, and answers it as it is from then on.
    pub fn claim(&mut self, job: u32, controller: ControllerId, generation: u64) -> Option<JobRow> {
        let (controllers, claims_all) = (&self.controllers, self.claims_all);
        let row = self.jobs.get_mut(&job)?;
        let free = row.controller.is_none_or(|holder| holder == controller || !controllers.contains_key(&holder));
        if row.generation > generation || row.state.is_final() || !(free || claims_all) {
            return None;
        }
        row.generation = generation;
        row.controller = Some(controller);
        Some(row.clone())
    }

    /// Lets go of a job.
    pub fn release(&mut self, job: u32, controller: ControllerId) {
        if let Some(row) = self.jobs.get_mut(&job)
            && row.controller == Some(controller)
            && !row.state.is_final()
        {
            row.controller = None;
        }
    }

    /// Writes the progress of a job. `again`: the same entry was sent before, and may be there.
    ///
    /// # Errors
    /// When somebody else or a newer generation has it, or it has ended.
    pub fn journal(&mut self, job: u32, controller: ControllerId, entry: &Entry, again: bool) -> Result<(), Refused> {
        let row = self.jobs.get_mut(&job).ok_or(Refused)?;
        let forward = |state| matches!(state, JobState::Running | JobState::Succeeded);
        if again && forward(entry.state) && forward(row.state) && row.step == entry.step {
            return Ok(());
        }
        if row.generation > entry.generation || row.controller != Some(controller) || row.state.is_final() {
            return Err(Refused);
        }
        row.state = entry.state;
        row.step = entry.step;
        row.undone = entry.undone;
        row.owed.extend(entry.owed);
        row.generation = entry.generation;
        row.ends += u32::from(entry.state.is_final());
        Ok(())
    }

    /// Jobs that have not ended, with what they work on and who has them.
    #[must_use]
    pub fn open(&self) -> Vec<(u32, Uuid, Option<ControllerId>)> {
        let open = self.jobs.iter().filter(|(_, row)| !row.state.is_final());
        open.map(|(job, row)| (*job, row.resource, row.controller)).collect()
    }

    /// Steps whose undoing is owed: job, step, resource.
    #[must_use]
    pub fn owed(&self) -> Vec<(u32, usize, Uuid)> {
        let of =
            |(job, row): (&u32, &JobRow)| row.owed.iter().map(|step| (*job, *step, row.resource)).collect::<Vec<_>>();
        self.jobs.iter().flat_map(of).collect()
    }

    /// An undoing is not owed any more.
    pub fn forget(&mut self, job: u32, step: usize) {
        if let Some(row) = self.jobs.get_mut(&job) {
            row.owed.retain(|owed| *owed != step);
        }
    }
}
