//! Time, messages and faults, and who is told of what.

use std::collections::{BTreeMap, BTreeSet};

use controller::db::controller::{ControllerRow, Membership};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shared::Code;
use shared::id::ControllerId;
use shared::state::controller::ControllerState;
use shared::state::job::JobState;
use uuid::Uuid;

use super::check::Check;
use super::database::{Database, Entry, JobRow};
use super::host::{Command, Hosts};
use super::member::Node;
use super::work::{Job, Request};
use super::{Flaw, Layouts, Outcome};

/// Controllers, users, and when faults end, in milliseconds.
const NODES: usize = 4;
const USERS: usize = 6;
const FAULTS_UNTIL: u64 = 40_000;
/// How long after that everything has to be at rest.
const PATIENCE: u64 = 240_000;

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
    Members(Membership),
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

/// Something that happens at a controller.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Beat,
    BeatLate(u64),
    Answered(Tag, Answer),
    Requested(Request),
    RequestLate(u64),
    HostSaid { job: u32, token: u64, said: Result<(), Code> },
    CommandLate { job: u32, token: u64 },
    Go { job: u32, token: u64 },
    OwedDone { job: u32, step: usize, done: bool },
    Sweep,
    TakeUp { job: u32, resource: Uuid },
    SettleAgain(u64),
    TakeUpAgain(u64),
    StopLate,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    Start(usize),
    Node { n: usize, life: u32, what: Happening },
    AtDatabase(u64),
    FromDatabase(u64),
    AtHost { n: usize, life: u32, by: By, command: Command },
    Told { user: usize, attempt: u32, accepted: bool },
    UserLate { user: usize, attempt: u32 },
    UserGoes(usize),
    Fault(Fault),
    Over(Fault),
}

/// What waits for the outcome of a command.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Job { job: u32, token: u64 },
    Owed { job: u32, step: usize },
}

/// Something that goes wrong until it is over.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Kill(usize),
    Freeze(usize),
    Stop(usize),
    /// Which directions of a way to the database are cut: up, down.
    Database(usize, bool, bool),
    BreakOff(usize),
    /// The server notices that the connections are gone; the controller reaches nothing.
    BlackHole(usize),
    Broker(usize),
    /// Which directions of the way to the hosts are cut: commands are late, outcomes are lost.
    Hosts(usize, bool, bool),
    Crash,
    ReadOnly,
}

/// A transaction on its way.
struct Flight {
    n: usize,
    life: u32,
    joined: u64,
    tag: Tag,
    ask: Ask,
    answer: Option<Answer>,
}

/// The ways of a controller.
#[derive(Clone, Copy, Debug, Default)]
struct Ways {
    up_cut: bool,
    down_cut: bool,
    broker_cut: bool,
    commands_cut: bool,
    outcomes_cut: bool,
}

/// A user, who has one job after the other done on one resource.
pub(super) struct User {
    pub(super) resource: Uuid,
    /// Jobs that were accepted, each with the value of the resource before it.
    pub(super) history: Vec<(u32, u32)>,
    /// The job that is wanted, until it is accepted.
    wanted: Option<u32>,
    attempt: u32,
}

/// What a job is about: what its journal holds as data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) before: u32,
    pub(super) fails_at: Option<usize>,
}

pub(super) struct World<'a> {
    pub(super) now: u64,
    next: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub(super) random: StdRng,
    pub(super) flaw: Option<Flaw>,
    pub(super) layouts: &'a mut Layouts,
    pub(super) nodes: Vec<Node>,
    ways: Vec<Ways>,
    pub(super) database: Database,
    database_up: bool,
    read_only: bool,
    flights: BTreeMap<u64, Flight>,
    /// Flights that a cut way keeps.
    kept: BTreeSet<u64>,
    kept_commands: Vec<(usize, Event)>,
    pub(super) hosts: Hosts,
    pub(super) users: Vec<User>,
    pub(super) orders: BTreeMap<u32, Order>,
    pub(super) check: Check,
    events: u64,
    digest: u64,
    telling: bool,
    story: Vec<String>,
}

impl<'a> World<'a> {
    pub(super) fn new(seed: u64, flaw: Option<Flaw>, layouts: &'a mut Layouts, telling: bool) -> Self {
        let user = |n: usize| User {
            resource: Uuid::from_u128(0xa000 + n as u128),
            history: Vec::new(),
            wanted: None,
            attempt: 0,
        };
        let mut world = Self {
            now: 0,
            next: 0,
            queue: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
            flaw,
            layouts,
            nodes: (0..NODES).map(Node::new).collect(),
            ways: vec![Ways::default(); NODES],
            database: Database::new(flaw == Some(Flaw::ClaimsAll)),
            database_up: true,
            read_only: false,
            flights: BTreeMap::new(),
            kept: BTreeSet::new(),
            kept_commands: Vec::new(),
            hosts: Hosts::default(),
            users: (0..USERS).map(user).collect(),
            orders: BTreeMap::new(),
            check: Check::default(),
            events: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            telling,
            story: Vec::new(),
        };
        for n in 0..NODES {
            let after = world.random.random_range(0..1500);
            world.at(after, Event::Start(n));
        }
        for user in 0..USERS {
            let after = world.random.random_range(2000..4000);
            world.at(after, Event::UserGoes(user));
        }
        world.plan();
        world
    }

    /// Plays until everything is at rest.
    pub(super) fn play(mut self) -> Outcome {
        while let Some(((at, n), event)) = self.queue.pop_first() {
            if at > FAULTS_UNTIL + PATIENCE || (at > FAULTS_UNTIL && at / 1000 > self.now / 1000 && self.is_at_rest()) {
                break;
            }
            self.now = at;
            self.events += 1;
            self.digest = (self.digest ^ (at << 20 ^ n)).wrapping_mul(0x0100_0000_01b3);
            self.happens(event);
            if self.check.breaches.len() > 20 {
                break;
            }
        }
        self.check_rest();
        let rolled_back = self.database.jobs.values().filter(|row| row.state == JobState::Failed).count();
        Outcome {
            events: self.events,
            jobs: (self.database.jobs.len(), rolled_back),
            generations: self.database.generation(),
            refused: self.hosts.refused,
            digest: self.digest,
            breaches: self.check.breaches,
            story: self.story,
        }
    }

    fn is_at_rest(&self) -> bool {
        let open = self.database.jobs.values().any(|row| !row.state.is_final() || !row.owed.is_empty());
        let rows = self.database.all(self.now).controllers;
        let settled = rows.iter().all(|row| row.settled >= self.database.generation());
        let all = rows.len() == NODES && rows.iter().all(|row| row.state == ControllerState::Active);
        !open && settled && all && self.users.iter().all(|user| user.wanted.is_none())
    }

    /// Has something happen after so many milliseconds.
    pub(super) fn at(&mut self, after: u64, event: Event) {
        self.next += 1;
        self.queue.insert((self.now + after, self.next), event);
    }

    /// Has something happen at a controller, in this life of it.
    pub(super) fn at_node(&mut self, n: usize, after: u64, what: Happening) {
        let life = self.nodes[n].life;
        self.at(after, Event::Node { n, life, what });
    }

    pub(super) fn token(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn between(&mut self, from: u64, to: u64) -> u64 {
        self.random.random_range(from..to)
    }

    pub(super) fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.telling {
            let line = format!("{:9.3} {}", self.now as f64 / 1000.0, text());
            self.story.push(line);
        }
    }

    pub(super) fn is_member(&self, n: usize) -> bool {
        self.database.is_member(self.nodes[n].id, self.nodes[n].joined)
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Start(n) => self.start(n),
            Event::Node { n, life, what } => {
                let node = &mut self.nodes[n];
                if !node.up || node.life != life {
                    return;
                }
                if node.frozen {
                    return node.missed.push(what);
                }
                self.happens_at(n, what);
            }
            Event::AtDatabase(id) => self.at_database(id),
            Event::FromDatabase(id) => self.database_answers(id),
            Event::AtHost { n, life, by, command } => self.at_host(n, life, by, &command),
            Event::Told { user, attempt, accepted } => self.told(user, attempt, accepted),
            Event::UserLate { user, attempt } if self.users[user].attempt == attempt => self.submit(user),
            Event::UserLate { .. } => {}
            Event::UserGoes(user) => self.user_goes(user),
            Event::Fault(fault) => self.fault(&fault),
            Event::Over(fault) => self.over(&fault),
        }
    }

    fn happens_at(&mut self, n: usize, what: Happening) {
        match what {
            Happening::Beat => self.beat(n),
            Happening::BeatLate(token) => self.beat_failed(n, token),
            Happening::Answered(tag, answer) => self.answered(n, tag, answer),
            Happening::Requested(request) => self.requested(n, request),
            Happening::RequestLate(id) => self.request_ends(n, id, false),
            Happening::HostSaid { job, token, said } => self.host_said(n, job, token, said),
            Happening::CommandLate { job, token } => self.host_said(n, job, token, Err(Code::HostUnreachable)),
            Happening::Go { job, token } => self.goes_on(n, job, token),
            Happening::OwedDone { job, step, done } => {
                if done {
                    self.ask(n, Tag::Nothing, Ask::Forget { job, step });
                }
            }
            Happening::Sweep => self.sweep(n),
            Happening::TakeUp { job, resource } => {
                if self.nodes[n].owns(resource) {
                    self.enqueue(n, job, resource);
                }
            }
            Happening::SettleAgain(generation) => self.settle(n, generation),
            Happening::TakeUpAgain(generation) => self.take_up(n, generation),
            Happening::StopLate => self.leave(n),
        }
    }

    // ---- The database and the ways to it.

    /// Sends a transaction.
    pub(super) fn ask(&mut self, n: usize, tag: Tag, ask: Ask) {
        let (id, delay) = (self.token(), self.between(1, 8));
        let (life, joined) = (self.nodes[n].life, self.nodes[n].joined);
        self.flights.insert(id, Flight { n, life, joined, tag, ask, answer: None });
        self.at(delay, Event::AtDatabase(id));
    }

    fn at_database(&mut self, id: u64) {
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

    fn database_answers(&mut self, id: u64) {
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
        let (id, now) = (self.nodes[n].id, self.now);
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
            Ask::All => return Answer::Members(self.database.all(now)),
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
    fn break_off(&mut self, n: usize) {
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
    fn release_kept(&mut self) {
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

    // ---- The hosts.

    pub(super) fn command(&mut self, n: usize, by: By, command: Command) {
        let delay = match self.between(0, 100) {
            0..90 => self.between(1, 30),
            90..98 => self.between(100, 4000),
            _ => self.between(4000, 30_000),
        };
        let life = self.nodes[n].life;
        self.at(delay, Event::AtHost { n, life, by, command });
    }

    fn at_host(&mut self, n: usize, life: u32, by: By, command: &Command) {
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

    // ---- Messages between controllers, and to users.

    /// Sends a message to another controller; what is lost is nobody's business here.
    pub(super) fn send(&mut self, from: usize, to: usize, what: Happening) {
        if self.ways[from].broker_cut || self.ways[to].broker_cut {
            return;
        }
        let delay = self.between(1, 10);
        self.at_node(to, delay, what);
    }

    pub(super) fn reply(&mut self, user: usize, attempt: u32, accepted: bool) {
        let delay = self.between(1, 5);
        self.at(delay, Event::Told { user, attempt, accepted });
    }

    // ---- Users.

    fn user_goes(&mut self, n: usize) {
        if let Some((job, before)) = self.users[n].history.last().copied() {
            let row = self.database.jobs.get(&job);
            if row.is_some_and(|row| !row.state.is_final() || !row.owed.is_empty()) {
                return self.at(150, Event::UserGoes(n));
            }
            let succeeded = row.is_some_and(|row| row.state == JobState::Succeeded);
            self.order(n, if succeeded { job } else { before });
        } else {
            self.order(n, 0);
        }
    }

    /// Wants the next job.
    fn order(&mut self, user: usize, before: u32) {
        if self.now > FAULTS_UNTIL {
            return;
        }
        let job = u32::try_from(self.orders.len()).unwrap_or(u32::MAX) + 1;
        let fails_at = if self.random.random_bool(0.2) { Some(self.random.random_range(2..4)) } else { None };
        self.orders.insert(job, Order { before, fails_at });
        self.users[user].wanted = Some(job);
        self.submit(user);
    }

    fn submit(&mut self, user: usize) {
        let Some(job) = self.users[user].wanted else { return };
        self.users[user].attempt += 1;
        let attempt = self.users[user].attempt;
        let n = self.random.random_range(0..NODES);
        if !self.nodes[n].up {
            return self.at(100, Event::UserLate { user, attempt });
        }
        let id = self.token();
        let request = Request { id, job, resource: self.users[user].resource, user, attempt, forwarded: false };
        let delay = self.between(1, 5);
        self.at_node(n, delay, Happening::Requested(request));
        self.at(12_000, Event::UserLate { user, attempt });
    }

    fn told(&mut self, user: usize, attempt: u32, accepted: bool) {
        let known = &mut self.users[user];
        if known.attempt != attempt || known.wanted.is_none() {
            return;
        }
        if !accepted {
            return self.at(100, Event::UserLate { user, attempt });
        }
        if let Some(job) = known.wanted.take() {
            known.attempt += 1;
            let before = self.orders.get(&job).map_or(0, |order| order.before);
            self.users[user].history.push((job, before));
            let after = self.between(150, 2500);
            self.at(after, Event::UserGoes(user));
        }
    }

    // ---- Faults.

    fn plan(&mut self) {
        let mut at = self.between(2500, 6000);
        while at < FAULTS_UNTIL {
            let n = self.random.random_range(0..NODES);
            let (up, down) = [(true, true), (true, false), (false, true)][self.random.random_range(0..3)];
            let (fault, longest) = match self.between(0, 100) {
                0..16 => (Fault::Kill(n), 8000),
                16..32 => (Fault::Freeze(n), 16_000),
                32..40 => (Fault::Stop(n), 3000),
                40..56 => (Fault::Database(n, up, down), 14_000),
                56..62 => (Fault::BreakOff(n), 300),
                62..72 => (Fault::BlackHole(n), 7000),
                72..80 => (Fault::Broker(n), 8000),
                80..92 => (Fault::Hosts(n, up, down), 20_000),
                92..96 => (Fault::Crash, 3000),
                _ => (Fault::ReadOnly, 5000),
            };
            let mut times = vec![(at, self.between(200, longest))];
            // Members that come and go again and again.
            if self.random.random_bool(0.1) {
                times.extend((1..4).map(|k| (at + k * 5000, 2700)));
            }
            for (at, lasts) in times.into_iter().filter(|(at, _)| *at < FAULTS_UNTIL) {
                self.at(at, Event::Fault(fault.clone()));
                self.at((at + lasts).min(FAULTS_UNTIL), Event::Over(fault.clone()));
            }
            at += self.between(300, 4000);
        }
    }

    fn fault(&mut self, fault: &Fault) {
        self.tell(|| format!("fault: {fault:?}"));
        match *fault {
            Fault::Kill(n) => self.dies(n),
            Fault::Freeze(n) => self.nodes[n].frozen = true,
            Fault::Stop(n) => self.stop(n),
            Fault::Database(n, up, down) => {
                self.ways[n].up_cut |= up;
                self.ways[n].down_cut |= down;
            }
            Fault::BreakOff(n) => self.break_off(n),
            Fault::BlackHole(n) => {
                self.break_off(n);
                (self.ways[n].up_cut, self.ways[n].down_cut) = (true, true);
            }
            Fault::Broker(n) => self.ways[n].broker_cut = true,
            Fault::Hosts(n, up, down) => {
                self.ways[n].commands_cut |= up;
                self.ways[n].outcomes_cut |= down;
            }
            Fault::Crash => {
                self.database_up = false;
                (0..NODES).for_each(|n| self.break_off(n));
            }
            Fault::ReadOnly => self.read_only = true,
        }
    }

    fn over(&mut self, fault: &Fault) {
        self.tell(|| format!("over: {fault:?}"));
        match *fault {
            Fault::Kill(n) => self.start(n),
            Fault::Freeze(n) => {
                self.nodes[n].frozen = false;
                for what in std::mem::take(&mut self.nodes[n].missed) {
                    // In any order: these are several threads.
                    let delay = self.between(0, 20);
                    self.at_node(n, delay, what);
                }
            }
            Fault::Stop(_) | Fault::BreakOff(_) => {}
            Fault::Database(n, ..) | Fault::BlackHole(n) => {
                (self.ways[n].up_cut, self.ways[n].down_cut) = (false, false);
                self.release_kept();
            }
            Fault::Broker(n) => self.ways[n].broker_cut = false,
            Fault::Hosts(n, ..) => {
                (self.ways[n].commands_cut, self.ways[n].outcomes_cut) = (false, false);
                self.release_kept();
            }
            Fault::Crash => self.database_up = true,
            Fault::ReadOnly => self.read_only = false,
        }
    }

    /// The process of a controller ends, and its connections with it when the server can hear of that.
    pub(super) fn dies(&mut self, n: usize) {
        if !self.nodes[n].up {
            return;
        }
        self.tell(|| format!("c{n} ends"));
        let (id, joined) = (self.nodes[n].id, self.nodes[n].joined);
        if self.is_heard(n) {
            self.database.connect(id, joined, false);
        }
        self.nodes[n].ends();
    }

    /// Whether the server hears when a controller closes a connection.
    pub(super) fn is_heard(&self, n: usize) -> bool {
        !self.ways[n].up_cut
    }

    pub(super) fn job_of(&mut self, n: usize, job: u32) -> Option<&mut Job> {
        self.nodes[n].jobs.get_mut(&job)
    }
}
