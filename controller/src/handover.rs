//! What happens in this controller when the ring changes: it lets go of what it has lost, and takes up
//! what it has gained.
//!
//! ```text
//! other members seen ──▶ ring followed ──┬─▶ jobs lost: left where they are, let go of, their owner told
//!                                        ├─▶ requests lost: ended (or cut off) ──▶ settled: the others may begin
//!                                        ├─▶ calls to who is gone or was restarted: failed at once, for the ring to be asked again
//!                                        └─▶ jobs gained: taken up
//! ```
//!
//! It knows no resource, only the ring, the bus and the workflow engine.

use std::sync::Arc;
use std::time::Duration;

use shared::state::controller::ControllerState;
use shared::{Code, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent_client::Agents;
use crate::bus::Bus;
use crate::cx::Cx;
use crate::db::controller::Membership;
use crate::db::{self, Db};
use crate::messages::controller::RingChanged;
use crate::ring::Ring;
use crate::services::{self, Context};
use crate::workflow::Engine;

/// How often what others tell is read although nobody has told it.
const ANYWAY: Duration = Duration::from_secs(60);

/// Follows the ring for one controller. Cloning shares it.
#[derive(Clone)]
pub struct Handover {
    /// The database.
    pub db: Db,
    /// The ring that follows.
    pub ring: Ring,
    /// Whose requests are let go of.
    pub bus: Arc<Bus>,
    /// Whose jobs are let go of and taken up.
    pub engine: Arc<Engine>,
    /// Who tells the agents where controllers are.
    pub agents: Arc<Agents>,
    /// The generation in which this controller joined.
    pub joined: u64,
    /// Owns what is done beside.
    pub tasks: TaskTracker,
    /// Ends what is done beside.
    pub stop: CancellationToken,
}

/// Time before something is tried again for which the database was away.
const PAUSE: Duration = Duration::from_millis(500);

impl Handover {
    /// Follows what the heartbeat sees, until it is to stop.
    pub async fn run(self, mut seen: watch::Receiver<Membership>) {
        while let Some(Ok(())) = self.stop.run_until_cancelled(seen.changed()).await {
            loop {
                let membership = seen.borrow_and_update().clone();
                let Err(error) = self.follow(&membership).await else { break };
                tracing::warn!(
                    ring.generation = membership.generation,
                    error = error.chain(),
                    detail = error.detail,
                    "the ring could not be followed; trying again"
                );
                if self.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Changes what this controller does, and waits until that is seen here.
    pub async fn become_state(&self, state: ControllerState) -> Result<()> {
        let me = self.ring.me();
        let mut followed = self.ring.watch();
        let generation =
            self.db.write(move |tx| Box::pin(async move { db::controller::set_state(tx, me, state).await })).await?;
        self.ring.nudge();
        self.bus.publish(&Cx::system(Duration::from_secs(10)), &RingChanged { generation });
        while self.ring.generation() < generation {
            // The sender lives as long as the ring.
            let _ = followed.changed().await;
        }
        Ok(())
    }

    async fn follow(&self, seen: &Membership) -> Result<()> {
        let before = if self.ring.has_missed(seen.generation) {
            let mut conn = self.db.read().await?;
            db::controller::changes_before(&mut conn, seen.generation, 1).await?.pop()
        } else {
            None
        };
        let others = seen.controllers.iter().filter(|row| row.id != self.ring.me());
        self.agents.set_others(&others.map(|row| row.addresses.as_slice()).collect::<Vec<_>>());
        let change =
            self.ring.follow(seen, before.as_ref().map(|change| (change.generation, change.members.as_slice())));
        change.gone.into_iter().for_each(|controller| self.bus.controller_left(controller));
        change.restarted.into_iter().for_each(|controller| self.bus.controller_restarted(controller));
        let Some(generation) = change.generation else { return Ok(()) };
        tracing::info!(
            ring.generation = generation,
            ring.members = self.ring.members().len(),
            controllers = seen.controllers.len(),
            "the ring has changed"
        );
        self.engine.let_go();
        self.tasks.spawn(self.clone().settle(generation));
        // Events that a controller appended just before it died woke nobody here.
        self.db.wake_event_watchers();
        self.tasks.spawn(self.clone().take_up(generation));
        Ok(())
    }

    /// Takes up the jobs that were gained in `generation`.
    async fn take_up(self, generation: u64) {
        loop {
            match self.engine.recover().await {
                Ok(0) => return,
                Ok(jobs) => {
                    tracing::info!(jobs, ring.generation = generation, "taking up jobs that had not ended");
                    return;
                }
                // What stays wrong is tried again by the sweep.
                Err(error) if self.is_to_insist(generation, &error).await && error.code.is_transient() => {}
                Err(_) => return,
            }
        }
    }

    /// Tells the others when nothing is done here any more about what belongs to them.
    async fn settle(self, generation: u64) {
        self.bus.until_let_go().await;
        let (me, joined) = (self.ring.me(), self.joined);
        loop {
            let written = self
                .db
                .write(move |tx| Box::pin(async move { db::controller::settle(tx, me, joined, generation).await }));
            match written.await.map_err(shared::Error::from) {
                Ok(()) => return,
                Err(error) if self.is_to_insist(generation, &error).await => {}
                Err(_) => return,
            }
        }
    }

    /// Whether something that the others wait for is to be tried again, after a pause: it is, whatever the database
    /// says (its disk may be full for a while), but when the generation is another or this is no member any more.
    async fn is_to_insist(&self, generation: u64, error: &shared::Error) -> bool {
        tracing::warn!(
            ring.generation = generation,
            error = error.chain(),
            detail = error.detail,
            "a change of the ring could not be followed to its end"
        );
        let waited = self.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some();
        waited && error.code != Code::StaleGeneration && self.ring.generation() == generation
    }
}

/// Reads again what the other controllers may have told, until `stop`: after the way to them was interrupted, and now
/// and then, for the way of one of them may have been interrupted on its own side.
pub async fn follow_broker(context: Context, stop: CancellationToken) {
    let Ok(bus) = context.bus() else { return };
    let mut health = bus.transport().watch();
    let mut seen = health.borrow_and_update().reconnects;
    loop {
        let woken = stop.run_until_cancelled(tokio::time::timeout(ANYWAY, health.changed())).await;
        let now = health.borrow_and_update().reconnects;
        let missed = match woken {
            None | Some(Ok(Err(_))) => return,
            Some(Ok(Ok(()))) => seen != now,
            Some(Err(_)) => bus.is_shared(),
        };
        seen = now;
        if !missed {
            continue;
        }
        context.deps.ring.nudge();
        context.deps.db.wake_event_watchers();
        if let Err(error) = services::setting::load(&context.deps).await {
            tracing::warn!(error = error.chain(), "the settings could not be read again");
        }
    }
}
