//! The ways of a controller, which may be cut: to the database, to the hosts, to the others.

use controller::db::controller::{ControllerRow, Membership};
use rand::RngExt;
use shared::id::ControllerId;
use shared::state::controller::ControllerState;
use shared::state::job::JobState;
use uuid::Uuid;

use super::Flaw;
use super::database::{Entry, JobRow};
use super::host::Command;
use super::world::{Event, Happening, World};

/// What a controller asks of the database.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Join,
    SetState(ControllerState),
    Settle(u64),
    Leave,
    Connect(u64),
    Touch,
    All,
    CountFromNow,
    Bury(ControllerRow),
    Before(u64),
    Insert { job: u32, resource: Uuid, generation: u64 },
    Get(u32),
    Claim { job: u32, generation: u64 },
    Release(u32),
    Journal { job: u32, entry: Entry, again: bool },
    Open,
    Owed,
    Forget { job: u32, step: usize },
}

/// What it answers.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// It was not reached, or the connection broke: it may have been done.
    Failed,
    /// A rule of it refuses.
    Refused,
    Done,
    Generation(u64),
    Touched(bool),
    /// Everybody, and what the database's clock says.
    Members(Membership, u64),
    Before(Option<(u64, Vec<ControllerId>)>),
    Job(Option<JobRow>),
    Jobs(Vec<(u32, Uuid, Option<ControllerId>)>),
    Owed(Vec<(u32, usize, Uuid)>),
}

/// Why a controller has asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tag {
    Joining,
    Activating,
    Draining,
    Leaving,
    Beat(u64),
    Before(Membership),
    Settle(u64),
    TakeUp(u64),
    Insert(u64),
    Job { job: u32, token: u64 },
    Owed,
    Nothing,
}

/// What waits for the outcome of a command.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Job { job: u32, token: u64 },
    Owed { job: u32, step: usize },
}

/// A transaction on its way.
pub(super) struct Flight {
    n: usize,
    life: u32,
    joined: u64,
    tag: Tag,
    ask: Ask,
    answer: Option<Answer>,
}

/// The ways of a controller.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ways {
    pub(super) up_cut: bool,
    pub(super) down_cut: bool,
    pub(super) broker_cut: bool,
    pub(super) commands_cut: bool,
    pub(super) outcomes_cut: bool,
}

impl World<'_> {
    /// Sends a transaction.
    pub(super) fn ask(&mut self, n: usize, tag: Tag, ask: Ask) {
        let (id, delay) = (self.token(), self.between(1, 8));
        let (life, joined) = (self.nodes[n].life, self.nodes[n].joined);
        self.flights.insert(id, Flight { n, life, joined, tag, ask, answer: None });
        self.at(delay, Event::AtDatabase(id));
    }

    pub(super) fn at_database(&mut self, id: u64) {
        let Some(flight) = self.flights.get(&id) else { return };
        if self.ways[flight.n].up_cut {
            self.kept.insert(id);
            return;
        }
        let (n, life, joined, ask) = (flight.n, flight.life, flight.joined, flight.ask.clone());
        let answer = if self.database_up { self.execute(n, life, joined, ask) } else { Answer::Failed };
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.answer = Some(answer);
        }
        let delay = self.between(1, 8);
        self.at(delay, Event::FromDatabase(id));
    }

    pub(super) fn database_answers(&mut self, id: u64) {
        let Some(flight) = self.flights.get(&id) else { return };
        if self.ways[flight.n].down_cut {
            self.kept.insert(id);
            return;
        }
        if let Some(Flight { n, life, tag, answer, .. }) = self.flights.remove(&id) {
            let what = Happening::Answered(tag, answer.unwrap_or(Answer::Failed));
            self.at(0, Event::Node { n, life, what });
        }
    }

    /// One transaction, all or nothing.
    fn execute(&mut self, n: usize, life: u32, joined: u64, ask: Ask) -> Answer {
        let (id, now) = (self.nodes[n].id, self.database_now());
        let generation = |result: Result<u64, _>| result.map_or(Answer::Refused, Answer::Generation);
        if self.read_only
            && !matches!(ask, Ask::Connect(_) | Ask::All | Ask::Before(_) | Ask::Get(_) | Ask::Open | Ask::Owed)
        {
            return Answer::Failed;
        }
        match ask {
            Ask::Join => return generation(self.database.join(id, now)),
            Ask::Connect(token) => {
                if self.nodes[n].up && self.nodes[n].life == life && self.nodes[n].is_beating(token) {
                    self.database.connect(id, joined, true);
                }
                return Answer::Done;
            }
            Ask::Touch => return Answer::Touched(self.database.touch(id, joined, now)),
            Ask::All => return Answer::Members(self.database.all(now), now),
            Ask::CountFromNow => {
                self.database.count_from_now(now);
                return Answer::Done;
            }
            Ask::Bury(row) => {
                if self.database.bury(&row, now) {
                    self.tell(|| format!("c{n} buries {}", row.id.to_string().chars().last().unwrap_or_default()));
                }
                return Answer::Done;
            }
            Ask::Before(generation) => return Answer::Before(self.database.change_before(generation)),
            Ask::Get(job) => return Answer::Job(self.database.jobs.get(&job).cloned()),
            Ask::Open => return Answer::Jobs(self.database.open()),
            Ask::Owed => return Answer::Owed(self.database.owed()),
            _ => {}
        }
        // The rest is written in the name of a member, and refused to all others.
        let member = self.database.is_member(id, joined);
        if !member && self.flaw != Some(Flaw::DatabaseTakesAll) {
            return Answer::Refused;
        }
        let what = format!("{ask:?}");
        let answer = match ask {
            Ask::SetState(state) => generation(self.database.set_state(id, state)),
            Ask::Settle(generation) => {
                self.database.settle(id, joined, generation);
                Answer::Done
            }
            Ask::Leave => {
                self.database.leave(id, joined);
                Answer::Done
            }
            Ask::Insert { job, resource, generation } => {
                self.database.insert(job, resource, id, generation);
                Answer::Done
            }
            Ask::Claim { job, generation } => Answer::Job(self.database.claim(job, id, generation)),
            Ask::Release(job) => {
                self.database.release(job, id);
                Answer::Done
            }
            Ask::Journal { job, entry, again } => self.journal(n, job, &entry, again),
            Ask::Forget { job, step } => {
                self.database.forget(job, step);
                Answer::Done
            }
            _ => Answer::Done,
        };
        if !matches!(answer, Answer::Refused) {
            self.check_written(n, &what, member);
        }
        answer
    }

    fn journal(&mut self, n: usize, job: u32, entry: &Entry, again: bool) -> Answer {
        let before = self.database.jobs.get(&job).map(|row| (row.state, row.step));
        if self.database.journal(job, self.nodes[n].id, entry, again).is_err() {
            return Answer::Refused;
        }
        if let Some((JobState::RollingBack, _)) = before
            && entry.state == JobState::Running
        {
            self.breach(format!("c{n} goes forward with job {job}, which is being rolled back"));
        }
        if let (Some((JobState::Running, step)), JobState::Running) = (before, entry.state)
            && entry.step < step
        {
            self.breach(format!("c{n} does step {} of job {job} again, which is at {step}", entry.step));
        }
        self.tell(|| format!("c{n} journals job {job}: {} {}", entry.state, entry.step));
        Answer::Done
    }

    /// All connections of a controller break; what was on its way is lost.
    pub(super) fn break_off(&mut self, n: usize) {
        let (id, joined) = (self.nodes[n].id, self.nodes[n].joined);
        self.database.connect(id, joined, false);
        self.nodes[n].disconnected();
        let lost: Vec<u64> = self.flights.iter().filter(|(_, flight)| flight.n == n).map(|(id, _)| *id).collect();
        for id in lost {
            self.kept.remove(&id);
            if let Some(Flight { n, life, tag, .. }) = self.flights.remove(&id) {
                self.at(1, Event::Node { n, life, what: Happening::Answered(tag, Answer::Failed) });
            }
        }
    }

    /// What the ways have kept goes on.
    pub(super) fn release_kept(&mut self) {
        for id in std::mem::take(&mut self.kept) {
            let answered = self.flights.get(&id).is_some_and(|flight| flight.answer.is_some());
            let delay = self.between(0, 5);
            self.at(delay, if answered { Event::FromDatabase(id) } else { Event::AtDatabase(id) });
        }
        for (_, event) in std::mem::take(&mut self.kept_commands) {
            let delay = self.between(0, 5);
            self.at(delay, event);
        }
    }

    pub(super) fn command(&mut self, n: usize, by: By, command: Command) {
        let delay = match self.between(0, 100) {
            0..90 => self.between(1, 30),
            90..98 => self.between(100, 4000),
            _ => self.between(4000, 30_000),
        };
        let life = self.nodes[n].life;
        self.at(delay, Event::AtHost { n, life, by, command });
    }

    pub(super) fn at_host(&mut self, n: usize, life: u32, by: By, command: &Command) {
        if self.ways[n].commands_cut {
            return self.kept_commands.push((n, Event::AtHost { n, life, by, command: *command }));
        }
        let taken = self.hosts.take(command, self.flaw);
        if taken.is_ok() {
            self.check_taken(command);
        }
        self.tell(|| format!("host takes {:?} of generation {}: {taken:?}", command.task, command.generation));
        let said = taken.and_then(|said| said);
        let lost = self.ways[n].outcomes_cut || self.random.random_bool(0.04);
        // An outcome that is lost is asked for later.
        let delay = if lost { self.between(12_000, 18_000) } else { self.between(5, 200) };
        let what = match by {
            By::Job { job, token } => Happening::HostSaid { job, token, said },
            By::Owed { job, step } => Happening::OwedDone { job, step, done: said.is_ok() },
        };
        self.at(delay, Event::Node { n, life, what });
    }

    /// Sends a message to another controller; what is lost is nobody's business here.
    pub(super) fn send(&mut self, from: usize, to: usize, what: Happening) {
        if self.ways[from].broker_cut || self.ways[to].broker_cut {
            return;
        }
        let delay = self.between(1, 10);
        self.at_node(to, delay, what);
    }

    /// Whether the server hears when a controller closes a connection.
    pub(super) fn is_heard(&self, n: usize) -> bool {
        !self.ways[n].up_cut
    }
}
