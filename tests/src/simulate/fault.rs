//! What goes wrong: planned by the seed, begun, and over.

use controller::db::controller::LOST_AFTER_MS;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::world::{Event, FAULTS_UNTIL, NODES, World};

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
    /// The database's clock is set by so many milliseconds.
    Clock(i64),
}

const HOUR_MS: i64 = 3_600_000;
/// One seed of so many has a clock that is set.
const CLOCKS: u64 = 8;
/// In one seed of so many the members stay, and only ways to hosts and to each other are cut: what is late arrives in
/// the generation in which it was sent.
const STEADY: u64 = 4;

impl World<'_> {
    pub(super) fn plan(&mut self, seed: u64) {
        let kinds = if seed % STEADY == 1 { (72, 92) } else { (0, 100) };
        let mut at = self.between(2500, 6000);
        while at < FAULTS_UNTIL {
            let n = self.random.random_range(0..NODES);
            let (up, down) = [(true, true), (true, false), (false, true)][self.random.random_range(0..3)];
            let (fault, longest) = match self.between(kinds.0, kinds.1) {
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
                times.extend((1..4).map(|k| (at + k * 5000, LOST_AFTER_MS.unsigned_abs() + 200)));
            }
            for (at, lasts) in times.into_iter().filter(|(at, _)| *at < FAULTS_UNTIL) {
                self.at(at, Event::Fault(fault.clone()));
                self.at((at + lasts).min(FAULTS_UNTIL), Event::Over(fault.clone()));
            }
            at += self.between(300, 4000);
        }
    }

    /// Chosen apart from the others, which stay what they are.
    pub(super) fn plan_clocks(&mut self, seed: u64) {
        if !seed.is_multiple_of(CLOCKS) {
            return;
        }
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..random.random_range(1..3) {
            let by = if random.random_bool(0.5) { HOUR_MS } else { -HOUR_MS };
            let at = random.random_range(6000..FAULTS_UNTIL);
            self.at(at, Event::Fault(Fault::Clock(by)));
            self.at(random.random_range(at..=FAULTS_UNTIL), Event::Over(Fault::Clock(by)));
        }
    }

    pub(super) fn fault(&mut self, fault: &Fault) {
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
            Fault::Clock(by) => self.clock_set_by += by,
        }
    }

    pub(super) fn over(&mut self, fault: &Fault) {
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
            Fault::Clock(by) => self.clock_set_by -= by,
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
}
