//! Has the faults of a plan happen to a fleet, several at a time.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::plan::{Fault, Way, Which};
use crate::fleet::{Controller, Fleet};
use crate::proxy::{Link, Proxy};
use crate::sim;
use crate::wait::eventually;

/// What was measured.
#[derive(Debug, Default)]
pub struct Seen {
    /// From each `kill -9` until others served what had been the dead controller's.
    pub taken_over: Vec<Duration>,
    /// From healing until everything was at rest, empty and checked.
    pub rest: Duration,
}

/// How long it is waited at most until others serve what was a killed controller's, to measure it.
const SERVED: Duration = Duration::from_secs(30);

struct Play<'a> {
    fleet: &'a Fleet,
    /// Processes and servers that something happens to now: nothing else happens to them.
    busy: Mutex<BTreeSet<String>>,
    seen: Mutex<Seen>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays all faults to their ends.
pub(super) async fn play(fleet: &Fleet, faults: &[Fault]) -> anyhow::Result<Seen> {
    let play = Play { fleet, busy: Mutex::default(), seen: Mutex::default() };
    let begin = tokio::time::Instant::now();
    try_join_all(faults.iter().map(async |fault| {
        tokio::time::sleep_until(begin + fault.at).await;
        play.one(fault).await
    }))
    .await?;
    Ok(play.seen.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Play<'_> {
    async fn one(&self, fault: &Fault) -> anyhow::Result<()> {
        let key = match &fault.which {
            Which::Kill(who) | Which::Restart(who) | Which::Freeze(who) | Which::Stop(who) => format!("process {who}"),
            Which::Link(who, way, _) => format!("way {who} {way:?}"),
            Which::Outside(who) => format!("way {who} {:?}", Way::Database),
            Which::Broker => "broker".to_string(),
            Which::Clock(who, _) => format!("clock {who}"),
            Which::DatabaseClock(_) => "clock of the database".to_string(),
            Which::HostClock(n, _) => format!("clock of host {n}"),
            Which::Database | Which::ReadOnly => "database".to_string(),
            Which::HostDown(n) | Which::HostFreeze(n) | Which::AgentRestart(n) => format!("host {n}"),
            Which::BreakOff(..) | Which::Forget(..) | Which::Hosts(..) | Which::Wire(..) => String::new(),
        };
        if !key.is_empty() && !lock(&self.busy).insert(key.clone()) {
            return Ok(());
        }
        let result = self.happen(fault).await;
        lock(&self.busy).remove(&key);
        // As systemd does, also while the next fault strikes it: a start is no safer than what comes after.
        if let (Ok(()), Which::Kill(who) | Which::Restart(who) | Which::Stop(who)) = (&result, &fault.which)
            && let Err(error) = self.controller(*who).ensure_running().await
        {
            // It is looked at again when all faults are over.
            tracing::info!(error = format!("{error:#}"), "a controller is not back while faults last");
        }
        result
    }

    async fn happen(&self, fault: &Fault) -> anyhow::Result<()> {
        let wait = || tokio::time::sleep(fault.lasts);
        match &fault.which {
            Which::Kill(who) => return self.kill(*who, fault.lasts).await,
            Which::Restart(who) => return self.controller(*who).kill().await,
            Which::Freeze(who) => {
                let controller = self.controller(*who);
                if !controller.runs().await? {
                    return Ok(());
                }
                controller.freeze().await?;
                wait().await;
                controller.thaw().await?;
            }
            Which::Stop(who) => {
                // While other faults last it may have to be cut off: that is no breach.
                if let Err(error) = self.controller(*who).stop().await {
                    tracing::info!(error = format!("{error:#}"), "a controller did not stop in order");
                }
                wait().await;
            }
            Which::Link(who, way, link) => {
                self.way(*who, *way).set(*link);
                wait().await;
                self.way(*who, *way).set(Link::WHOLE);
            }
            Which::BreakOff(who, way) => self.way(*who, *way).break_off(),
            Which::Forget(who, way) => self.way(*who, *way).forget(),
            Which::Outside(who) => {
                let way = self.way(*who, Way::Database);
                way.set(Link::CUT);
                way.break_off();
                wait().await;
                way.set(Link::WHOLE);
            }
            Which::Hosts(who, what) => {
                let fault = sim::Fault::new("*", what.clone()).from(&self.controller(*who).advertised);
                let id = self.fleet.sim.faults().add(fault);
                wait().await;
                self.fleet.sim.faults().remove(id);
            }
            Which::Clock(who, seconds) => {
                self.controller(*who).set_clock_ahead(*seconds)?;
                wait().await;
                self.controller(*who).set_clock_ahead(0)?;
            }
            Which::DatabaseClock(seconds) => {
                self.set_database_clock(*seconds).await?;
                wait().await;
                self.set_database_clock(0).await?;
            }
            Which::HostClock(n, seconds) => {
                self.host(*n).set_clock_ahead_ms(seconds * 1000);
                wait().await;
                self.host(*n).set_clock_ahead_ms(0);
            }
            Which::ReadOnly => {
                self.fleet.database.set_read_only(true).await?;
                wait().await;
                self.fleet.database.set_read_only(false).await?;
            }
            Which::Broker => {
                self.fleet.broker.kill().await?;
                wait().await;
                self.fleet.broker.restart().await?;
            }
            Which::Database => {
                self.fleet.postgres.kill().await?;
                wait().await;
                self.fleet.postgres.restart().await?;
            }
            Which::HostDown(n) => {
                self.host(*n).down();
                wait().await;
                self.host(*n).up();
            }
            Which::HostFreeze(n) => {
                self.host(*n).freeze();
                wait().await;
                self.host(*n).thaw();
            }
            Which::AgentRestart(n) => self.host(*n).restart(),
            Which::Wire(what, likely) => {
                let id = self.fleet.sim.faults().add(sim::Fault::new("*", what.clone()).likely(*likely));
                wait().await;
                self.fleet.sim.faults().remove(id);
            }
        }
        Ok(())
    }

    /// Sets the database's clock, as soon as the database is there.
    async fn set_database_clock(&self, seconds: i64) -> anyhow::Result<()> {
        eventually("the database's clock is set", async || self.fleet.database.set_clock_ahead(seconds).await).await
    }

    /// Kills a controller, and measures how long it takes until others serve what was its own. When others
    /// cannot (they are under fault themselves), nothing is measured.
    async fn kill(&self, who: usize, lasts: Duration) -> anyhow::Result<()> {
        let controller = self.controller(who);
        let alone = lock(&self.busy).len() == 1;
        let id = match controller.id() {
            Ok(id) if alone => self.fleet.id_owned_by(id).await.ok(),
            _ => None,
        };
        controller.kill().await?;
        let begin = Instant::now();
        let served = async {
            let Some(id) = id else { return };
            let through = (who + 1) % self.fleet.controllers.len();
            let served = tokio::time::timeout(SERVED, self.fleet.until_served(id, through)).await;
            // Another fault may have begun meanwhile: then this says nothing about the kill.
            if let (Ok(Ok(took)), true) = (served, lock(&self.busy).len() == 1) {
                lock(&self.seen).taken_over.push(took);
            }
        };
        tokio::join!(served, tokio::time::sleep(lasts));
        tracing::debug!(took = ?begin.elapsed(), "killed and back");
        Ok(())
    }

    fn controller(&self, who: usize) -> &Controller {
        &self.fleet.controllers[who]
    }

    fn way(&self, who: usize, way: Way) -> &Proxy {
        match way {
            Way::Broker => &self.controller(who).to_broker,
            Way::Database => &self.controller(who).to_database,
            Way::Others => &self.controller(who).from_others,
        }
    }

    fn host(&self, n: usize) -> std::sync::Arc<sim::Host> {
        std::sync::Arc::clone(&self.fleet.sim.hosts()[n])
    }
}
