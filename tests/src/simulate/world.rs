//! Time, what happens in it, and at whom.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shared::Code;
use shared::state::controller::ControllerState;
use shared::state::job::JobState;
use uuid::Uuid;

use super::check::Check;
use super::database::Database;
use super::fault::Fault;
use super::host::{Command, Hosts};
use super::member::Node;
use super::user::{Order, User};
use super::way::{Answer, Ask, By, Flight, Tag, Ways};
use super::work::{Job, Request};
use super::{Flaw, Layouts, Outcome};

/// Controllers, users, and when faults end, in milliseconds.
pub(super) const NODES: usize = 4;
const USERS: usize = 6;
pub(super) const FAULTS_UNTIL: u64 = 40_000;
/// What the database's clock says at the beginning: it may be set back.
pub(super) const EPOCH: u64 = 360_000_000;
/// How long after that everything has to be at rest.
const PATIENCE: u64 = 240_000;

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

pub(super) struct World<'a> {
    pub(super) now: u64,
    next: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub(super) random: StdRng,
    pub(super) flaw: Option<Flaw>,
    pub(super) layouts: &'a mut Layouts,
    pub(super) nodes: Vec<Node>,
    pub(super) ways: Vec<Ways>,
    pub(super) database: Database,
    pub(super) database_up: bool,
    pub(super) read_only: bool,
    /// How far the database's clock was set.
    pub(super) clock_set_by: i64,
    pub(super) flights: BTreeMap<u64, Flight>,
    /// Flights that a cut way keeps.
    pub(super) kept: BTreeSet<u64>,
    pub(super) kept_commands: Vec<(usize, Event)>,
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
            clock_set_by: 0,
            flights: BTreeMap::new(),
            kept: BTreeSet::new(),
            kept_commands: Vec::new(),
            hosts: Hosts::default(),
            users: (0..USERS).map(User::new).collect(),
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
        world.plan(seed);
        world.plan_clocks(seed);
        world
    }

    /// What the database's clock says.
    pub(super) fn database_now(&self) -> u64 {
        (EPOCH + self.now).saturating_add_signed(self.clock_set_by)
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
        let rows = self.database.all(self.database_now()).controllers;
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

    pub(super) fn job_of(&mut self, n: usize, job: u32) -> Option<&mut Job> {
        self.nodes[n].jobs.get_mut(&job)
    }
}
