//! Signs of life of the hosts that are owned here.
//!
//! Each host has its own moment in the interval, by its id, so pings are spread evenly. Each ping is a
//! connection of its own and shares no slot with others: a dead host delays nobody. What a host costs
//! while nothing happens is one small row in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::api::host::HostConnection;
use shared::id::{HostId, ResourceId};
use shared::wire::host::Pong;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::agent_client::HostRef;
use crate::cx::Cx;
use crate::db;
use crate::messages::host::{CompareHost, HostMissed};
use crate::services::Context;

/// How often the driver looks for hosts whose moment has come.
const TICK: Duration = Duration::from_millis(100);
/// How often the list of hosts is read again.
const REFRESH: Duration = Duration::from_secs(2);
/// How long a comparison or a disconnection may take.
const FOLLOW_UP: Duration = Duration::from_secs(90);

/// What is remembered of a host between two pings.
#[derive(Clone, Debug)]
struct Known {
    address: String,
    connection: HostConnection,
    boot_id: Option<Uuid>,
    agent_id: Option<Uuid>,
    next: Instant,
    misses: u32,
    /// The digest that the last comparison began with.
    digest: Option<u64>,
    /// A ping or what follows from it is on its way.
    busy: bool,
}

type Table = Arc<Mutex<HashMap<HostId, Known>>>;

/// Pings the hosts that are owned here, until `stop`.
pub async fn run(context: Context, tasks: TaskTracker, stop: CancellationToken) {
    let table: Table = Arc::default();
    let mut refreshed: Option<Instant> = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if refreshed.is_none_or(|at| at.elapsed() >= REFRESH) {
            match db::soon(refresh(&context, &table)).await {
                Ok(()) => refreshed = Some(Instant::now()),
                Err(error) => tracing::warn!(error = error.chain(), "the list of hosts could not be read"),
            }
        }
        for host in due(&context, &table) {
            tasks.spawn(ping(context.clone(), Arc::clone(&table), host));
        }
    }
}

/// Takes over what the database says of the hosts.
async fn refresh(context: &Context, table: &Table) -> shared::Result<()> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page = {
            let mut conn = context.deps.db.read().await?;
            db::host::after(&mut conn, after, 1000).await?
        };
        let Some(last) = page.last() else { break };
        after = Some(last.host.id);
        rows.extend(page);
    }
    let interval = context.deps.settings.seconds("host.ping_interval");
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let mut left = std::mem::take(&mut *table);
    for row in rows.into_iter().filter(|row| context.deps.ring.is_mine(row.host.id.uuid())) {
        let known = left.remove(&row.host.id);
        let fresh = Known {
            address: row.host.address,
            connection: row.host.connection,
            boot_id: row.boot_id,
            agent_id: row.agent_id,
            next: known
                .as_ref()
                .map_or_else(|| Instant::now() + phase(row.host.id, pause(row.host.connection, interval)), |k| k.next),
            misses: known.as_ref().map_or(0, |k| k.misses),
            digest: known.as_ref().and_then(|k| k.digest),
            busy: known.as_ref().is_some_and(|k| k.busy),
        };
        table.insert(row.host.id, fresh);
    }
    Ok(())
}

/// A host's own moment in the interval.
fn phase(id: HostId, interval: Duration) -> Duration {
    let hash = xxhash_rust::xxh3::xxh3_64(id.uuid().as_bytes());
    interval.mul_f64((hash >> 11) as f64 / (1_u64 << 53) as f64)
}

/// Time between two pings: a host that has just joined is awaited.
fn pause(connection: HostConnection, interval: Duration) -> Duration {
    match connection {
        HostConnection::Connecting => interval.min(Duration::from_secs(1)),
        HostConnection::Connected | HostConnection::Disconnected => interval,
    }
}

fn due(context: &Context, table: &Table) -> Vec<HostRef> {
    let now = Instant::now();
    let interval = context.deps.settings.seconds("host.ping_interval");
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    let due = table.iter_mut().filter(|(_, known)| known.next <= now && !known.busy);
    due.map(|(id, known)| {
        known.busy = true;
        known.next = now + pause(known.connection, interval);
        HostRef { id: *id, address: known.address.clone() }
    })
    .collect()
}

/// What follows from one ping.
enum FollowUp {
    None,
    Compare(Option<u64>),
    Missed(String),
}

async fn ping(context: Context, table: Table, host: HostRef) {
    let timeout = context.deps.settings.seconds("host.ping_timeout");
    let answer = context.deps.agents.ping(&host, timeout).await;
    let misses_allowed = u32::try_from(context.deps.settings.integer("host.ping_misses")).unwrap_or(u32::MAX);
    let follow_up = {
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = table.get_mut(&host.id) else { return };
        match answer {
            Ok(pong) if pong.host_id != host.id => FollowUp::Missed("another host answers at its address".to_string()),
            Ok(pong) => {
                known.misses = 0;
                if needs_comparison(known, &pong) { FollowUp::Compare(pong.digest) } else { FollowUp::None }
            }
            Err(error) => {
                known.misses += 1;
                let gone = known.misses >= misses_allowed && known.connection != HostConnection::Disconnected;
                if gone { FollowUp::Missed(error.chain()) } else { FollowUp::None }
            }
        }
    };
    if let Err(error) = follow(&context, &table, host.id, follow_up).await {
        tracing::warn!(host.id = %host.id, error = error.chain(), detail = error.detail, "a host could not be compared; trying again with the next ping");
    }
    if let Some(known) = table.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&host.id) {
        known.busy = false;
    }
}

/// While libvirt does not answer there is nothing to compare with: the last known state stands.
fn needs_comparison(known: &Known, pong: &Pong) -> bool {
    let restarted = known.boot_id != Some(pong.boot_id) || known.agent_id != Some(pong.agent_id);
    pong.digest.is_some() && (known.connection != HostConnection::Connected || restarted || known.digest != pong.digest)
}

async fn follow(context: &Context, table: &Table, id: HostId, follow_up: FollowUp) -> shared::Result<()> {
    let cx = Cx::system(FOLLOW_UP);
    let bus = context.bus()?;
    match follow_up {
        FollowUp::None => return Ok(()),
        FollowUp::Missed(reason) => bus.call(&cx, HostMissed { id, reason }).await?,
        FollowUp::Compare(digest) => {
            // What jobs held is compared again with the next ping: the digest stays the old one.
            let complete = bus.call(&cx, CompareHost { id }).await?;
            if complete && let Some(known) = table.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
                known.digest = digest;
            }
        }
    }
    let row = {
        let mut conn = context.deps.db.read().await?;
        db::host::get(&mut conn, id).await?
    };
    if let (Some(row), Some(known)) = (row, table.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id)) {
        known.connection = row.host.connection;
        known.boot_id = row.boot_id;
        known.agent_id = row.agent_id;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> (Known, Pong) {
        let (boot_id, agent_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let known = Known {
            address: String::new(),
            connection: HostConnection::Connected,
            boot_id: Some(boot_id),
            agent_id: Some(agent_id),
            next: Instant::now(),
            misses: 0,
            digest: Some(7),
            busy: false,
        };
        let pong = Pong {
            host_id: HostId::new(),
            boot_id,
            agent_id,
            agent_version: String::new(),
            digest: Some(7),
            libvirt_error: None,
        };
        (known, pong)
    }

    #[test]
    fn only_what_differs_is_compared_and_silence_of_libvirt_is_not_a_difference() {
        let (mut host, mut pong) = known();
        assert!(!needs_comparison(&host, &pong));
        pong.digest = Some(8);
        assert!(needs_comparison(&host, &pong));
        pong.digest = None;
        pong.boot_id = Uuid::from_u128(9);
        assert!(!needs_comparison(&host, &pong));
        pong.digest = Some(7);
        assert!(needs_comparison(&host, &pong));
        pong.boot_id = Uuid::from_u128(1);
        host.connection = HostConnection::Disconnected;
        assert!(needs_comparison(&host, &pong));
    }

    #[test]
    fn hosts_are_spread_over_the_interval() {
        let interval = Duration::from_secs(60);
        let early = (0..1000).filter(|_| phase(HostId::new(), interval) < interval / 2).count();
        assert!((400..600).contains(&early), "{early}");
    }
}
