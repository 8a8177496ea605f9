//! What a controller does for users: it accepts jobs, runs each in the lane of its resource, and lets go of
//! what belongs to others. Where a job is and what comes next is said by [`controller::workflow::course`].

use controller::ring::Begin;
use controller::workflow::course::{Course, Todo, Verdict, after_apply, after_undo, must_claim};
use shared::Code;
use shared::state::job::JobState;
use uuid::Uuid;

use super::Flaw;
use super::database::{Entry, JobRow};
use super::host::Command;
use super::way::{Answer, Ask, By, Tag};
use super::world::{Happening, World};

/// Steps of every job: accept, place, and two commands to a host.
const STEPS: usize = 4;
const FIRST_COMMAND: usize = 2;
/// How long a request waits for its resource, and a command for its outcome, in milliseconds.
const REQUEST: u64 = 10_000;
const EXCHANGE: u64 = 20_000;

/// A user's request, at some controller.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) job: u32,
    pub(super) resource: Uuid,
    pub(super) user: usize,
    pub(super) attempt: u32,
    /// Whether another controller has sent it on.
    pub(super) forwarded: bool,
}

/// A request at the owner of its resource.
pub(super) struct Pending {
    pub(super) request: Request,
    /// Whether the transaction that accepts the job is on its way.
    begun: bool,
}

/// A job in a lane of a controller.
pub(super) struct Job {
    pub(super) resource: Uuid,
    /// Whether it is to be left where it is.
    leave: bool,
    stage: Stage,
    /// Names what it waits for.
    token: u64,
    generation: u64,
    course: Course,
    undone: usize,
    tries: u32,
    again: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Stage {
    Queued,
    Getting,
    Claiming,
    /// For a lease.
    Waiting {
        index: usize,
        undo: bool,
    },
    Acting {
        index: usize,
        undo: bool,
    },
    Pausing(Then),
    Journalling {
        next: Course,
        entry: Entry,
    },
    Releasing,
}

/// What comes after a pause.
#[derive(Clone, Debug, PartialEq)]
enum Then {
    Get,
    Act { index: usize, undo: bool },
    Journal { next: Course, entry: Entry },
}

impl World<'_> {
    // ---- Requests.

    pub(super) fn requested(&mut self, n: usize, request: Request) {
        let node = &self.nodes[n];
        let owner = node.view.ring().owner(request.resource);
        match owner {
            Some(owner) if owner == node.id && !node.leaving => {
                let id = request.id;
                self.nodes[n].requests.insert(id, Pending { request, begun: false });
                self.at_node(n, REQUEST, Happening::RequestLate(id));
                self.consider(n, id);
            }
            Some(owner) if owner != node.id && !request.forwarded => {
                let Some(to) = self.nodes.iter().position(|node| node.id == owner) else { return };
                self.nodes[n].forwarded.insert(request.id, (owner, request.user, request.attempt));
                self.send(n, to, Happening::Requested(Request { forwarded: true, ..request }));
            }
            _ => self.reply(request.user, request.attempt, false),
        }
    }

    /// Begins with a request when it may begin now.
    fn consider(&mut self, n: usize, id: u64) {
        let (now, node) = (self.now, &mut self.nodes[n]);
        let may_act = node.may_act(now);
        let Some(pending) = node.requests.get_mut(&id).filter(|pending| !pending.begun) else { return };
        let resource = pending.request.resource;
        let begin = match node.view.begin(node.id, resource) {
            Begin::Held if self.flaw == Some(Flaw::NobodyWaits) => Begin::Now,
            begin => begin,
        };
        match begin {
            Begin::Elsewhere => self.request_ends(n, id, false),
            Begin::Now if may_act => {
                pending.begun = true;
                let (job, generation) = (pending.request.job, node.view.generation());
                self.check_begin(n, resource, false);
                self.ask(n, Tag::Insert(id), Ask::Insert { job, resource, generation });
            }
            Begin::Now | Begin::Held => {}
        }
    }

    pub(super) fn inserted(&mut self, n: usize, id: u64, accepted: bool) {
        let Some(pending) = self.nodes[n].requests.get_mut(&id) else { return };
        pending.begun = false;
        let (job, resource) = (pending.request.job, pending.request.resource);
        self.request_ends(n, id, accepted);
        if accepted {
            self.enqueue(n, job, resource);
        }
    }

    /// A request is answered. One that has begun goes on until the database has answered.
    pub(super) fn request_ends(&mut self, n: usize, id: u64, accepted: bool) {
        let Some(pending) = self.nodes[n].requests.get(&id) else { return };
        let Request { resource, user, attempt, .. } = pending.request;
        self.reply(user, attempt, accepted);
        if !pending_begun(&self.nodes[n].requests, id) {
            self.nodes[n].requests.remove(&id);
            self.check_end(n, resource, false);
            self.try_settle(n);
            self.try_leave(n);
        }
    }

    /// There is a new ring, or a new lease.
    pub(super) fn reconsider(&mut self, n: usize) {
        let requests: Vec<u64> = self.nodes[n].requests.keys().copied().collect();
        requests.into_iter().for_each(|id| self.consider(n, id));
        let waiting = self.nodes[n].jobs.iter().filter_map(|(job, at)| match at.stage {
            Stage::Waiting { index, undo } => Some((*job, index, undo)),
            _ => None,
        });
        let waiting: Vec<_> = waiting.collect();
        waiting.into_iter().for_each(|(job, index, undo)| self.act(n, job, index, undo));
    }

    // ---- Jobs.

    pub(super) fn enqueue(&mut self, n: usize, job: u32, resource: Uuid) {
        let node = &mut self.nodes[n];
        if node.jobs.contains_key(&job) || node.leaving {
            return;
        }
        let new = Job {
            resource,
            leave: false,
            stage: Stage::Queued,
            token: 0,
            generation: 0,
            course: Course::resume(STEPS, JobState::Queued, 1, 0),
            undone: 0,
            tries: 0,
            again: false,
        };
        node.jobs.insert(job, new);
        let lane = node.lanes.entry(resource).or_default();
        lane.push_back(job);
        if lane.len() == 1 {
            self.ask_for(n, job, Stage::Getting, Ask::Get(job));
        }
    }

    /// Has a job wait for the answer of the database.
    fn ask_for(&mut self, n: usize, job: u32, stage: Stage, ask: Ask) {
        let token = self.token();
        if let Some(at) = self.job_of(n, job) {
            (at.stage, at.token) = (stage, token);
            self.ask(n, Tag::Job { job, token }, ask);
        }
    }

    pub(super) fn job_answered(&mut self, n: usize, job: u32, token: u64, answer: Answer) {
        let (me, generation) = (self.nodes[n].id, self.nodes[n].view.generation());
        let Some(at) = self.job_of(n, job).filter(|at| at.token == token) else { return };
        let (stage, resource) = (at.stage.clone(), at.resource);
        match (stage, answer) {
            (Stage::Getting | Stage::Claiming, Answer::Failed) => self.pause(n, job, Then::Get),
            (Stage::Getting, Answer::Job(Some(row))) if !row.state.is_final() && self.nodes[n].owns(resource) => {
                if must_claim(row.generation, row.controller, me, generation) {
                    self.ask_for(n, job, Stage::Claiming, Ask::Claim { job, generation });
                } else {
                    self.begin(n, job, &row);
                }
            }
            (Stage::Claiming, Answer::Job(Some(row))) => self.begin(n, job, &row),
            (Stage::Journalling { next, entry }, Answer::Done) => {
                if let Some(at) = self.job_of(n, job) {
                    (at.course, at.undone) = (next, entry.undone);
                    at.tries = 0;
                }
                self.advance(n, job);
            }
            (Stage::Journalling { next, entry }, Answer::Failed) => {
                if let Some(at) = self.job_of(n, job) {
                    at.again = true;
                }
                self.pause(n, job, Then::Journal { next, entry });
            }
            (Stage::Releasing, answer) => {
                let owner = self.nodes[n].view.ring().owner(resource);
                let to = self.nodes.iter().position(|node| Some(node.id) == owner);
                if let (Answer::Done, Some(to)) = (answer, to) {
                    self.send(n, to, Happening::TakeUp { job, resource });
                }
                self.gone(n, job);
            }
            _ => self.finish(n, job),
        }
    }

    fn begin(&mut self, n: usize, job: u32, row: &JobRow) {
        let generation = self.nodes[n].view.generation();
        let forgets = self.flaw == Some(Flaw::ForgetsJournal);
        let Some(at) = self.job_of(n, job) else { return };
        at.generation = generation;
        at.undone = row.undone;
        at.course = if forgets {
            Course::resume(STEPS, JobState::Queued, 1, 0)
        } else {
            Course::resume(STEPS, row.state, row.step, row.undone)
        };
        self.advance(n, job);
    }

    fn advance(&mut self, n: usize, job: u32) {
        let Some(at) = self.job_of(n, job) else { return };
        let course = at.course;
        match course.todo() {
            Todo::Apply(index) => self.act(n, job, index, false),
            Todo::Undo(index) => self.act(n, job, index, true),
            Todo::Close => self.journal_next(n, job, course.applied(), None),
            Todo::Nothing => self.finish(n, job),
        }
    }

    /// Applies or undoes a step.
    fn act(&mut self, n: usize, job: u32, index: usize, undo: bool) {
        let may_act = self.nodes[n].may_act(self.now);
        let Some(at) = self.nodes[n].jobs.get(&job) else { return };
        let (resource, tries) = (at.resource, at.tries);
        if at.leave {
            return self.finish(n, job);
        }
        if index < FIRST_COMMAND {
            return self.acted(n, job, undo, None);
        }
        if !may_act {
            if let Some(at) = self.job_of(n, job) {
                at.stage = Stage::Waiting { index, undo };
            }
            return;
        }
        let owned = self.nodes[n].owns(resource).then(|| self.nodes[n].view.generation());
        let order = self.orders.get(&job).copied();
        let token = self.token();
        let Some(at) = self.job_of(n, job) else { return };
        let generation = owned.unwrap_or(at.generation).max(at.generation);
        (at.stage, at.token) = (Stage::Acting { index, undo }, token);
        self.check_begin(n, resource, true);
        self.nodes[n].issued += 1;
        let command = Command {
            resource,
            task: (job, index, undo, tries),
            generation,
            sequence: self.nodes[n].issued,
            value: if undo { order.map_or(0, |order| order.before) } else { job },
            fails: !undo && order.is_some_and(|order| order.fails_at == Some(index)),
        };
        self.command(n, By::Job { job, token }, command);
        self.at_node(n, EXCHANGE, Happening::CommandLate { job, token });
    }

    pub(super) fn host_said(&mut self, n: usize, job: u32, token: u64, said: Result<(), Code>) {
        let Some(at) = self.job_of(n, job).filter(|at| at.token == token) else { return };
        let (Stage::Acting { index, undo }, resource) = (at.stage.clone(), at.resource) else { return };
        self.check_end(n, resource, true);
        let Err(code) = said else { return self.acted(n, job, undo, None) };
        let Some(at) = self.job_of(n, job) else { return };
        at.tries += 1;
        let verdict = if undo { after_undo(code, at.tries) } else { after_apply(code, at.tries) };
        match verdict {
            Verdict::Again => self.pause(n, job, Then::Act { index, undo }),
            Verdict::Leave => self.finish(n, job),
            Verdict::Failed => self.acted(n, job, undo, Some(index)),
        }
    }

    /// A step was applied or undone, or that has failed for good.
    fn acted(&mut self, n: usize, job: u32, undo: bool, failed: Option<usize>) {
        let Some(at) = self.job_of(n, job) else { return };
        let course = at.course;
        match (undo, failed) {
            (false, None) => self.journal_next(n, job, course.applied(), None),
            (false, Some(_)) => self.journal_next(n, job, course.failed(), None),
            (true, owed) => {
                at.undone += 1;
                self.journal_next(n, job, course.undone(false), owed);
            }
        }
    }

    fn journal_next(&mut self, n: usize, job: u32, next: Course, owed: Option<usize>) {
        let Some(at) = self.job_of(n, job) else { return };
        at.again = false;
        let (state, step) = (next.state(), next.step());
        let entry = Entry { state, step, undone: at.undone, owed, generation: at.generation };
        self.write(n, job, next, entry);
    }

    fn write(&mut self, n: usize, job: u32, next: Course, entry: Entry) {
        let again = self.job_of(n, job).is_some_and(|at| at.again);
        let ask = Ask::Journal { job, entry: entry.clone(), again };
        self.ask_for(n, job, Stage::Journalling { next, entry }, ask);
    }

    fn pause(&mut self, n: usize, job: u32, then: Then) {
        let (token, wait) = (self.token(), self.between(200, 3000));
        let Some(at) = self.job_of(n, job) else { return };
        if at.leave {
            return self.finish(n, job);
        }
        (at.stage, at.token) = (Stage::Pausing(then), token);
        self.at_node(n, wait, Happening::Go { job, token });
    }

    pub(super) fn goes_on(&mut self, n: usize, job: u32, token: u64) {
        let Some(at) = self.job_of(n, job).filter(|at| at.token == token) else { return };
        match at.stage.clone() {
            Stage::Pausing(Then::Get) => self.ask_for(n, job, Stage::Getting, Ask::Get(job)),
            Stage::Pausing(Then::Act { index, undo }) => self.act(n, job, index, undo),
            Stage::Pausing(Then::Journal { next, entry }) => self.write(n, job, next, entry),
            _ => {}
        }
    }

    /// Nothing more is done about a job here: it has ended, or is left where it is.
    fn finish(&mut self, n: usize, job: u32) {
        let Some(at) = self.job_of(n, job) else { return };
        let resource = at.resource;
        self.check_end(n, resource, true);
        if self.nodes[n].owns(resource) {
            self.gone(n, job);
        } else {
            self.ask_for(n, job, Stage::Releasing, Ask::Release(job));
        }
    }

    fn gone(&mut self, n: usize, job: u32) {
        let Some(at) = self.nodes[n].jobs.remove(&job) else { return };
        let lane = self.nodes[n].lanes.entry(at.resource).or_default();
        lane.pop_front();
        let next = lane.front().copied();
        if next.is_none() {
            self.nodes[n].lanes.remove(&at.resource);
        }
        if let Some(next) = next {
            self.ask_for(n, next, Stage::Getting, Ask::Get(next));
        }
        // It may have come back while it was on its way out.
        if at.leave && self.nodes[n].owns(at.resource) {
            self.enqueue(n, job, at.resource);
        }
    }

    /// Leaves every job whose resource belongs to another controller now.
    pub(super) fn let_go(&mut self, n: usize) {
        let lost = self.nodes[n].jobs.iter().filter(|(_, at)| !self.nodes[n].owns(at.resource));
        let lost: Vec<u32> = lost.map(|(job, _)| *job).collect();
        for job in lost {
            let Some(at) = self.job_of(n, job) else { continue };
            at.leave = true;
            if matches!(at.stage, Stage::Acting { .. } | Stage::Waiting { .. } | Stage::Pausing(_)) {
                self.finish(n, job);
            }
        }
    }

    /// Undoes what is owed.
    pub(super) fn clean_up(&mut self, n: usize, owed: Vec<(u32, usize, Uuid)>) {
        for (job, step, resource) in owed {
            let busy = self.nodes[n].lanes.contains_key(&resource);
            if !self.nodes[n].owns(resource) || busy || !self.nodes[n].may_act(self.now) {
                continue;
            }
            self.nodes[n].issued += 1;
            let command = Command {
                resource,
                task: (job, step, true, u32::try_from(1000 + self.now).unwrap_or(u32::MAX)),
                generation: self.nodes[n].view.generation(),
                sequence: self.nodes[n].issued,
                value: self.orders.get(&job).map_or(0, |order| order.before),
                fails: false,
            };
            self.command(n, By::Owed { job, step }, command);
        }
    }
}

fn pending_begun(requests: &std::collections::BTreeMap<u64, Pending>, id: u64) -> bool {
    requests.get(&id).is_some_and(|pending| pending.begun)
}
