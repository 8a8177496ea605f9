//! Users, each of whom wants one job after the other.

use rand::RngExt;
use shared::state::job::JobState;
use uuid::Uuid;

use super::work::Request;
use super::world::{Event, FAULTS_UNTIL, Happening, NODES, World};

/// A user, who has one job after the other done on one resource.
pub(super) struct User {
    pub(super) resource: Uuid,
    /// Jobs that were accepted, each with the value of the resource before it.
    pub(super) history: Vec<(u32, u32)>,
    /// The job that is wanted, until it is accepted.
    pub(super) wanted: Option<u32>,
    pub(super) attempt: u32,
}

/// What a job is about: what its journal holds as data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) before: u32,
    pub(super) fails_at: Option<usize>,
}

impl User {
    pub(super) fn new(n: usize) -> Self {
        Self { resource: Uuid::from_u128(0xa000 + n as u128), history: Vec::new(), wanted: None, attempt: 0 }
    }
}

impl World<'_> {
    pub(super) fn reply(&mut self, user: usize, attempt: u32, accepted: bool) {
        let delay = self.between(1, 5);
        self.at(delay, Event::Told { user, attempt, accepted });
    }

    pub(super) fn user_goes(&mut self, n: usize) {
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

    pub(super) fn submit(&mut self, user: usize) {
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

    pub(super) fn told(&mut self, user: usize, attempt: u32, accepted: bool) {
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
}
