//! A controller as a member: its heartbeat, the ring that it follows, how it comes and goes.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use controller::db::controller::{ControllerRow, Membership};
use controller::ring::view::{self, Heartbeats};
use controller::ring::{LEASE, Lease, View};
use controller::workflow::course::{Look, look};
use shared::id::ControllerId;
use shared::state::controller::ControllerState;
use uuid::Uuid;

use super::Flaw;
use super::way::{Answer, Ask, Tag};
use super::work::{Job, Pending};
use super::world::{EPOCH, Event, Happening, World};

/// Time between two beats, and how long the database may take for one, in milliseconds.
const EVERY: u64 = 500;
const PATIENCE: u64 = 5000;
/// Time before something is tried again for which the database was away.
const PAUSE: u64 = 500;
/// How long a controller may take to stop in order.
const DRAIN: u64 = 5000;
/// Time between two looks for jobs that nobody has.
const SWEEP: u64 = 10_000;

/// One controller.
pub(super) struct Node {
    pub(super) id: ControllerId,
    /// Counts its starts.
    pub(super) life: u32,
    pub(super) up: bool,
    pub(super) frozen: bool,
    /// What happened while it was frozen.
    pub(super) missed: Vec<Happening>,
    pub(super) joined: u64,
    pub(super) view: View,
    lease: Option<Lease>,
    /// Since when its heartbeat has had one connection.
    in_touch_since: Option<u64>,
    /// What it takes the database's clock to be ahead of simulated time.
    clock: i64,
    heartbeats: Heartbeats,
    beat: Option<Beat>,
    seen: Option<Membership>,
    followed: Option<Membership>,
    following: bool,
    settling: Option<u64>,
    draining: bool,
    drains_in: Option<u64>,
    pub(super) leaving: bool,
    pub(super) jobs: BTreeMap<u32, Job>,
    pub(super) lanes: BTreeMap<Uuid, VecDeque<u32>>,
    pub(super) requests: BTreeMap<u64, Pending>,
    /// Requests that went to another controller, and whose they are.
    pub(super) forwarded: BTreeMap<u64, (ControllerId, usize, u32)>,
    /// Counts the commands that it has issued.
    pub(super) issued: u64,
}

/// A beat that is going on.
struct Beat {
    token: u64,
    began: u64,
    /// When it asked who is there.
    asked: u64,
    /// Those that are still to be buried, once somebody was found dead.
    dead: Option<Vec<ControllerRow>>,
}

impl Node {
    pub(super) fn new(n: usize) -> Self {
        Self {
            id: ControllerId::from_uuid(Uuid::from_u128(0xc0 + n as u128)),
            life: 0,
            up: false,
            frozen: false,
            missed: Vec::new(),
            joined: 0,
            view: View::default(),
            lease: None,
            in_touch_since: None,
            clock: EPOCH.cast_signed(),
            heartbeats: Heartbeats::default(),
            beat: None,
            seen: None,
            followed: None,
            following: false,
            settling: None,
            draining: false,
            drains_in: None,
            leaving: false,
            jobs: BTreeMap::new(),
            lanes: BTreeMap::new(),
            requests: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            issued: 0,
        }
    }

    /// The process is gone, with all that it knew.
    pub(super) fn ends(&mut self) {
        *self = Self { id: self.id, life: self.life, joined: self.joined, ..Self::new(0) };
    }

    pub(super) fn owns(&self, resource: Uuid) -> bool {
        self.view.ring().owner(resource) == Some(self.id)
    }

    pub(super) fn may_act(&self, now: u64) -> bool {
        self.lease.unwrap_or(Lease::ENDLESS).holds(Duration::from_millis(now))
    }

    pub(super) fn is_beating(&self, token: u64) -> bool {
        self.beat.as_ref().is_some_and(|beat| beat.token == token)
    }

    pub(super) const fn disconnected(&mut self) {
        self.in_touch_since = None;
    }

    /// Whether a request goes on here about what belongs to others.
    fn holds_others(&self) -> bool {
        self.requests.values().any(|pending| !self.owns(pending.request.resource))
    }
}

impl World<'_> {
    pub(super) fn start(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.up {
            return;
        }
        node.ends();
        node.life += 1;
        node.up = true;
        node.joined = 0;
        self.ask(n, Tag::Joining, Ask::Join);
    }

    /// The process ends, and whoever watches over it starts it again.
    fn ends_and_returns(&mut self, n: usize) {
        self.dies(n);
        let after = self.between(300, 2500);
        self.at(after, Event::Start(n));
    }

    pub(super) fn answered(&mut self, n: usize, tag: Tag, answer: Answer) {
        match (tag, answer) {
            (Tag::Joining, Answer::Generation(generation)) => {
                self.tell(|| format!("c{n} joins in generation {generation}"));
                self.nodes[n].joined = generation;
                self.beat(n);
                self.at_node(n, SWEEP, Happening::Sweep);
                self.ask(n, Tag::Activating, Ask::SetState(ControllerState::Active));
            }
            (Tag::Activating, Answer::Generation(_)) => {}
            (Tag::Joining | Tag::Activating, _) => self.ends_and_returns(n),
            (Tag::Draining, Answer::Generation(generation)) => {
                self.nodes[n].drains_in = Some(generation);
                self.try_leave(n);
            }
            (Tag::Draining, _) => self.leave(n),
            (Tag::Leaving, _) => self.ends_and_returns(n),
            (Tag::Beat(token), answer) if self.nodes[n].is_beating(token) => self.beat_answered(n, token, answer),
            (Tag::Beat(_), _) => {}
            (Tag::Before(seen), Answer::Before(before)) => {
                self.nodes[n].following = false;
                self.follow(n, &seen, before);
                self.follow_seen(n);
            }
            (Tag::Before(seen), _) => {
                self.nodes[n].following = false;
                // What was seen meanwhile is newer.
                self.nodes[n].seen.get_or_insert(seen);
                self.at_node(n, PAUSE, Happening::SettleAgain(0));
            }
            (Tag::Settle(generation), Answer::Failed) => self.at_node(n, PAUSE, Happening::SettleAgain(generation)),
            (Tag::TakeUp(_), Answer::Jobs(jobs)) => {
                for (job, resource, holder) in jobs {
                    let node = &self.nodes[n];
                    match look(holder, node.id, node.owns(resource), node.jobs.contains_key(&job)) {
                        Look::TakeUp => self.enqueue(n, job, resource),
                        Look::LetGo => self.ask(n, Tag::Nothing, Ask::Release(job)),
                        Look::Nothing => {}
                    }
                }
            }
            (Tag::TakeUp(generation), _) => self.at_node(n, PAUSE, Happening::TakeUpAgain(generation)),
            (Tag::Insert(id), answer) => self.inserted(n, id, matches!(answer, Answer::Done)),
            (Tag::Job { job, token }, answer) => self.job_answered(n, job, token, answer),
            (Tag::Owed, Answer::Owed(owed)) => self.clean_up(n, owed),
            (Tag::Settle(_) | Tag::Owed | Tag::Nothing, _) => {}
        }
    }

    // ---- The heartbeat.

    pub(super) fn beat(&mut self, n: usize) {
        if self.nodes[n].beat.is_some() || self.nodes[n].leaving {
            return;
        }
        let token = self.token();
        self.nodes[n].beat = Some(Beat { token, began: self.now, asked: self.now, dead: None });
        self.at_node(n, PATIENCE, Happening::BeatLate(token));
        let first = if self.nodes[n].in_touch_since.is_none() { Ask::Connect(token) } else { Ask::Touch };
        self.ask(n, Tag::Beat(token), first);
    }

    /// A beat is given up, with its connection.
    pub(super) fn beat_failed(&mut self, n: usize, token: u64) {
        if !self.nodes[n].is_beating(token) {
            return;
        }
        self.nodes[n].beat = None;
        self.nodes[n].disconnected();
        let (id, joined) = (self.nodes[n].id, self.nodes[n].joined);
        if self.is_heard(n) {
            self.database.connect(id, joined, false);
        }
        self.at_node(n, EVERY, Happening::Beat);
    }

    fn beat_answered(&mut self, n: usize, token: u64, answer: Answer) {
        let now = self.now;
        let tag = Tag::Beat(token);
        match answer {
            // Connected, or somebody is buried.
            Answer::Done => {
                let node = &mut self.nodes[n];
                if node.in_touch_since.is_none() {
                    node.in_touch_since = Some(now);
                    return self.ask(n, tag, Ask::Touch);
                }
                match node.beat.as_mut().and_then(|beat| beat.dead.as_mut()).and_then(Vec::pop) {
                    Some(next) => self.ask(n, tag, Ask::Bury(next)),
                    None => self.look(n, tag),
                }
            }
            Answer::Touched(true) => self.look(n, tag),
            Answer::Touched(false) => {
                self.tell(|| format!("c{n} is fenced"));
                self.ends_and_returns(n);
            }
            Answer::Members(seen, told) => {
                if self.flaw != Some(Flaw::ClockIsTrusted) {
                    if view::is_set(self.follow_clock(n, told.cast_signed())) {
                        self.nodes[n].in_touch_since = Some(now);
                    }
                    if view::are_ahead(&seen) {
                        return self.ask(n, tag, Ask::CountFromNow);
                    }
                }
                let in_touch = now - self.nodes[n].in_touch_since.unwrap_or(now);
                let (in_touch, at) = (Duration::from_millis(in_touch), Duration::from_millis(now));
                self.nodes[n].heartbeats.note(&seen, at);
                let mut dead: Vec<_> = match self.flaw {
                    Some(Flaw::ClockIsTrusted) => {
                        let judges = in_touch >= view::JUDGES_AFTER;
                        seen.controllers.iter().filter(|row| judges && row.is_dead()).cloned().collect()
                    }
                    _ => self.nodes[n].heartbeats.dead(&seen, in_touch, at).cloned().collect(),
                };
                let Some(beat) = self.nodes[n].beat.as_mut() else { return };
                match dead.pop() {
                    Some(first) if beat.dead.is_none() => {
                        beat.dead = Some(dead);
                        self.ask(n, tag, Ask::Bury(first));
                    }
                    _ => self.beat_done(n, seen),
                }
            }
            _ => self.beat_failed(n, token),
        }
    }

    fn look(&mut self, n: usize, tag: Tag) {
        if let Some(beat) = self.nodes[n].beat.as_mut() {
            beat.asked = self.now;
        }
        self.ask(n, tag, Ask::All);
    }

    /// Takes over what the database's clock says, and answers by how much its own was off, as the product's does.
    fn follow_clock(&mut self, n: usize, told: i64) -> i64 {
        let node = &mut self.nodes[n];
        let asked = node.beat.as_ref().map_or(self.now, |beat| beat.asked);
        let by = told - told.clamp(asked.cast_signed() + node.clock - 1, self.now.cast_signed() + node.clock + 1);
        node.clock += by;
        by
    }

    fn beat_done(&mut self, n: usize, mut seen: Membership) {
        let Some(beat) = self.nodes[n].beat.take() else { return };
        let length = if self.flaw == Some(Flaw::LongLease) { Duration::from_secs(5) } else { LEASE };
        self.nodes[n].lease = Some(Lease::of(Duration::from_millis(beat.began), length));
        seen.controllers = seen.controllers.into_iter().map(ControllerRow::at_rest).collect();
        if self.nodes[n].followed.as_ref() != Some(&seen) {
            self.nodes[n].followed = Some(seen.clone());
            self.nodes[n].seen = Some(seen);
            self.follow_seen(n);
        }
        self.at_node(n, EVERY, Happening::Beat);
        self.reconsider(n);
    }

    // ---- The ring.

    fn follow_seen(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.following {
            return;
        }
        let Some(seen) = node.seen.take() else { return };
        if node.view.has_missed(seen.generation) {
            node.following = true;
            let generation = seen.generation;
            self.ask(n, Tag::Before(seen), Ask::Before(generation));
        } else {
            self.follow(n, &seen, None);
        }
    }

    fn follow(&mut self, n: usize, seen: &Membership, before: Option<(u64, Vec<ControllerId>)>) {
        let node = &mut self.nodes[n];
        let layouts = &mut *self.layouts;
        let before = before.as_ref().map(|(generation, members)| (*generation, members.as_slice()));
        let next = node.view.follow(node.id, seen, before, |members| layouts.of(members));
        let change = node.view.change_to(&next);
        node.view = next;
        self.check_followed(n);
        for gone in change.gone.into_iter().chain(change.restarted) {
            let lost: Vec<_> =
                self.nodes[n].forwarded.iter().filter(|(_, (to, ..))| *to == gone).map(|(id, _)| *id).collect();
            for id in lost {
                if let Some((_, user, attempt)) = self.nodes[n].forwarded.remove(&id) {
                    self.reply(user, attempt, false);
                }
            }
        }
        if let Some(generation) = change.generation {
            self.tell(|| format!("c{n} follows generation {generation}"));
            self.let_go(n);
            self.settle(n, generation);
            self.take_up(n, generation);
        }
        self.try_leave(n);
        self.reconsider(n);
    }

    /// Tells the others when nothing is done here any more about what belongs to them.
    pub(super) fn settle(&mut self, n: usize, generation: u64) {
        self.follow_seen(n);
        if generation == self.nodes[n].view.generation() {
            self.nodes[n].settling = Some(generation);
            self.try_settle(n);
        }
    }

    pub(super) fn try_settle(&mut self, n: usize) {
        if self.nodes[n].holds_others() {
            return;
        }
        if let Some(generation) = self.nodes[n].settling.take() {
            self.ask(n, Tag::Settle(generation), Ask::Settle(generation));
        }
    }

    pub(super) fn take_up(&mut self, n: usize, generation: u64) {
        if generation == self.nodes[n].view.generation() && !self.nodes[n].leaving {
            self.ask(n, Tag::TakeUp(generation), Ask::Open);
        }
    }

    pub(super) fn sweep(&mut self, n: usize) {
        self.at_node(n, SWEEP, Happening::Sweep);
        let generation = self.nodes[n].view.generation();
        self.take_up(n, generation);
        self.ask(n, Tag::Owed, Ask::Owed);
    }

    // ---- Stopping in order.

    pub(super) fn stop(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if !node.up || node.frozen || node.draining || node.joined == 0 {
            return;
        }
        self.tell(|| format!("c{n} is told to stop"));
        self.nodes[n].draining = true;
        self.at_node(n, DRAIN, Happening::StopLate);
        self.ask(n, Tag::Draining, Ask::SetState(ControllerState::Draining));
    }

    pub(super) fn try_leave(&mut self, n: usize) {
        let node = &self.nodes[n];
        if node.drains_in.is_some_and(|generation| generation <= node.view.generation()) && !node.holds_others() {
            self.leave(n);
        }
    }

    /// Begins nothing any more, leaves jobs where they are, and leaves.
    pub(super) fn leave(&mut self, n: usize) {
        if std::mem::replace(&mut self.nodes[n].leaving, true) {
            return;
        }
        for (_, job) in std::mem::take(&mut self.nodes[n].jobs) {
            self.check_end(n, job.resource, true);
        }
        self.nodes[n].lanes.clear();
        for (_, pending) in std::mem::take(&mut self.nodes[n].requests) {
            self.check_end(n, pending.request.resource, false);
        }
        self.ask(n, Tag::Leaving, Ask::Leave);
    }
}
