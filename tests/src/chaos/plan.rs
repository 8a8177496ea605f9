//! Which faults a run has, and when: a function of the seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::proxy::Link;
use crate::sim::What;

/// A way of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the message broker, and by it to the other controllers.
    Broker,
    /// To the database.
    Database,
    /// From hosts and other controllers to it.
    Others,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Which {
    /// `kill -9` of a controller; it is started again at the end.
    Kill(usize),
    /// `kill -9` of a controller that is started again at once, before others can have seen that it was gone.
    Restart(usize),
    /// A controller is stopped as a debugger does, and goes on at the end.
    Freeze(usize),
    /// A controller is stopped in order, and started again at the end.
    Stop(usize),
    /// A way of a controller is so until the end.
    Link(usize, Way, Link),
    /// The connections on a way of a controller are broken off.
    BreakOff(usize, Way),
    /// The connections on a way of a controller are forgotten: nothing passes on them, and nobody is told.
    Forget(usize, Way),
    /// A controller's connections to the database break, and none can be made until the end.
    Outside(usize),
    /// What a controller sends to hosts is lost so until the end.
    Hosts(usize, What),
    /// A controller's clock is so many seconds off until the end.
    Clock(usize, i64),
    /// The database's clock is so many seconds off until the end.
    DatabaseClock(i64),
    /// A host's clock is so many seconds off until the end.
    HostClock(usize, i64),
    /// The database refuses writes until the end.
    ReadOnly,
    /// The broker crashes, and is started again at the end.
    Broker,
    /// The database server crashes, and is started again at the end.
    Database,
    /// Nobody listens on a host until the end.
    HostDown(usize),
    /// A host takes connections and answers nothing until the end.
    HostFreeze(usize),
    /// An agent forgets its tasks.
    AgentRestart(usize),
    /// Something happens to a part of the commands and their callbacks, until the end.
    Wire(What, f64),
}

/// A fault, when it begins and how long it lasts.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Since the run began.
    pub at: Duration,
    /// Until it is taken away.
    pub lasts: Duration,
    /// What happens.
    pub which: Which,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.2} s, for {:5.2} s: {:?}", self.at.as_secs_f64(), self.lasts.as_secs_f64(), self.which)
    }
}

/// How long a controller is frozen at most, in milliseconds.
const LONGEST_FREEZE: u64 = 60_000;
/// How long what is sent on a way that is slow takes at most, in milliseconds.
const SLOWEST: u64 = 1500;

/// The faults of a seed, in the order in which they begin.
#[must_use]
pub fn plan(seed: u64, controllers: usize, hosts: usize, length: Duration) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    let mut at = Duration::from_millis(random.random_range(500..2000));
    while at < length {
        let (which, longest) = choose(&mut random, controllers, hosts);
        let lasts = Duration::from_millis(random.random_range(200..longest));
        faults.push(Fault { at, lasts, which });
        at += Duration::from_millis(random.random_range(500..3500));
    }
    faults
}

/// A fault, and how long it lasts at most, in milliseconds.
fn choose(random: &mut StdRng, controllers: usize, hosts: usize) -> (Which, u64) {
    let (who, host) = (random.random_range(0..controllers), random.random_range(0..hosts.max(1)));
    let way = [Way::Broker, Way::Database, Way::Others][random.random_range(0..3)];
    match random.random_range(0..100) {
        0..15 => (Which::Kill(who), 6000),
        15..19 => (Which::Restart(who), 300),
        19..30 => (Which::Freeze(who), 16_000),
        30..33 => (Which::Freeze(who), LONGEST_FREEZE),
        33..40 => (Which::Stop(who), 2000),
        40..52 => (Which::Link(who, way, link(random)), 9000),
        52..55 => (Which::BreakOff(who, way), 300),
        55..57 => (Which::Forget(who, way), 300),
        57..60 => (Which::Outside(who), 5000),
        60..63 => {
            (Which::Hosts(who, [What::Held, What::Unanswered, What::Silence][random.random_range(0..3)].clone()), 8000)
        }
        63..65 => (Which::ReadOnly, 4000),
        65..68 => (Which::Broker, 3000),
        68..71 => (Which::Database, 2000),
        71..74 => (Which::Clock(who, clock(random)), 10_000),
        74..77 => (Which::DatabaseClock(clock(random)), 10_000),
        77..78 => (Which::HostClock(host, clock(random)), 5000),
        78..82 => (Which::HostDown(host), 5000),
        82..85 => (Which::HostFreeze(host), 4000),
        85..89 => (Which::AgentRestart(host), 300),
        _ => (Which::Wire(wire(random), random.random_range(0.05..0.5)), 6000),
    }
}

/// How far a clock is off, in seconds: up to an hour either way, and sometimes less than leases last.
fn clock(random: &mut StdRng) -> i64 {
    let most = [2, 20, 3600][random.random_range(0..3)];
    random.random_range(-most..=most)
}

fn link(random: &mut StdRng) -> Link {
    match random.random_range(0..4) {
        0 => Link::CUT,
        1 => Link { up: false, ..Link::WHOLE },
        2 => Link { down: false, ..Link::WHOLE },
        _ => Link { delay: Duration::from_millis(random.random_range(20..SLOWEST)), ..Link::WHOLE },
    }
}

fn wire(random: &mut StdRng) -> What {
    match random.random_range(0..8) {
        0 => What::CallbackLost,
        1 => What::CallbackTwice,
        2 => What::CallbackLate { ms: random.random_range(100..3000) },
        3 => What::CallbackReordered,
        4 => What::DropBefore,
        5 => What::DropAfter,
        6 => What::RestartHalfway,
        _ => What::Delay { ms: random.random_range(50..1500) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_plan_again_and_others_another() {
        let of = |seed| plan(seed, 3, 3, Duration::from_secs(20));
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        assert!(of(7).len() > 4 && of(7).windows(2).all(|pair| pair[0].at <= pair[1].at));
    }
}
