//! Rows of controllers, and the history of the ring. Only the database's clock is used here.
//!
//! Every change of who is a member takes the counter `generation` first, whose row stays locked until
//! the commit: changes happen one after the other, and each is a new generation.

use shared::api::controller::{Controller, ControllerReport};
use shared::id::ControllerId;
use shared::state::controller::ControllerState;
use shared::time::Timestamp;
use shared::{Code, Error as Fault};

use super::filter::Field;
use super::page::ListSpec;
use super::row::json;
use super::{Conn, Dialect, Result, Row, Tx, query, query_of};

/// Lists of controllers.
pub const LIST: ListSpec = ListSpec {
    columns: "controller.*",
    from: "controller",
    only: None,
    fields: &[
        Field::id("id", "controller.id").sortable(),
        Field::text("address", "controller.address").sortable(),
        Field::text("version", "controller.version"),
        Field::text("state", "controller.state"),
        Field::time("started_at", "controller.started_at"),
    ],
    id: "id",
    default_sort: "id",
    account: None,
};

/// A controller as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerRow {
    /// Its id, the same after a restart.
    pub id: ControllerId,
    /// URLs by which agents reach it, the one for callbacks first.
    pub addresses: Vec<String>,
    /// Its version.
    pub version: String,
    /// What it does.
    pub state: ControllerState,
    /// The generation in which it joined: another one after a restart.
    pub joined: u64,
    /// The newest generation for which it has let go of what it does not own any more.
    pub settled: u64,
    /// When it joined.
    pub started_at: Timestamp,
    /// Its last heartbeat, in milliseconds of the database's clock.
    pub heartbeat_at: i64,
    /// Time since then, in milliseconds.
    pub silent_ms: i64,
    /// Whether the connection of its heartbeat exists, as far as the database can tell.
    pub connected: bool,
}

/// All controllers at one moment, and the generation of the ring that they make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Generation of the ring.
    pub generation: u64,
    /// Everyone who has a row, by id.
    pub controllers: Vec<ControllerRow>,
}

/// The ring from one change to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingChange {
    /// Its generation.
    pub generation: u64,
    /// When it came.
    pub at: Timestamp,
    /// The active controllers.
    pub members: Vec<ControllerId>,
}

/// Longest silence after which a controller whose heartbeat's connection is gone is taken for dead.
pub const LOST_AFTER_MS: i64 = 2500;
/// Longest silence after which a controller is taken for dead in any case.
pub const SILENT_AFTER_MS: i64 = 10_000;

impl ControllerRow {
    /// Without what passes from beat to beat: whoever watches wants to know of changes.
    #[must_use]
    pub fn at_rest(self) -> Self {
        Self { heartbeat_at: 0, silent_ms: 0, ..self }
    }

    /// Whether others may take over. Its lease ([`crate::ring::LEASE`]) has run out long before.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        self.dead_in_ms() <= 0
    }

    /// Whether it is dead, and nothing was heard of it since it was `seen` to be. The clock may have been set meanwhile:
    /// what counts is that its last heartbeat is still the same.
    #[must_use]
    pub fn is_still_dead(&self, seen: &Self) -> bool {
        (self.id, self.joined, self.heartbeat_at) == (seen.id, seen.joined, seen.heartbeat_at) && self.is_dead()
    }

    /// When others may take over, if nothing is heard of it until then.
    #[must_use]
    pub const fn dead_in_ms(&self) -> i64 {
        (if self.connected { SILENT_AFTER_MS } else { LOST_AFTER_MS }) - self.silent_ms
    }
}

/// Makes a row for a controller that starts, and answers the generation in which it joined. A row of
/// its last run goes, with its hold on jobs; one that still lives refuses.
pub async fn join(tx: &mut Tx, id: ControllerId, address: &str, version: &str) -> Result<u64> {
    let dialect = tx.dialect();
    let generation = next_generation(tx.conn()).await?;
    if dialect == Dialect::Postgres {
        let before = all(tx.conn(), dialect).await?.controllers.into_iter().find(|row| row.id == id);
        if let Some(row) = before.filter(|row| row.connected && !row.is_dead()) {
            let text = format!(
                "another controller with the identity {id} runs at {}: a copied data_dir needs a controller-id of its own (remove that file)",
                row.addresses.join(", ")
            );
            return Err(Fault::new(Code::Conflict, text).into());
        }
        query("DELETE FROM controller WHERE id = $1").bind(id.to_string()).execute(tx.conn()).await?;
    } else {
        // The data folder is locked, so nobody else uses an embedded database.
        query("DELETE FROM controller").execute(tx.conn()).await?;
    }
    // What its last run held is nobody's now: this one need not own it, and knows nothing of it.
    query("UPDATE job SET controller_id = NULL WHERE controller_id = $1 AND finished_at IS NULL")
        .bind(id.to_string())
        .execute(tx.conn())
        .await?;
    let now = dialect.now_ms();
    query_of(format!(
        "INSERT INTO controller (id, address, version, generation, started_at, heartbeat_at, state, settled)
         VALUES ($1, $2, $3, $4, {now}, {now}, 'joining', $4)"
    ))
    .bind(id.to_string())
    .bind(address.to_string())
    .bind(version.to_string())
    .bind(generation)
    .execute(tx.conn())
    .await?;
    record_change(tx.conn(), dialect, generation).await?;
    Ok(u64::try_from(generation).unwrap_or_default())
}

/// Changes what a controller does. Answers the new generation; `not_found` when it is gone.
pub async fn set_state(tx: &mut Tx, id: ControllerId, state: ControllerState) -> Result<u64> {
    let dialect = tx.dialect();
    let generation = next_generation(tx.conn()).await?;
    let before = query("SELECT state FROM controller WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?
        .ok_or_else(|| Fault::not_found("controller", id))?;
    let before: ControllerState = before.parse("state")?;
    if !before.can_become(state) {
        let text = format!("controller {id} is {before}: it cannot become {state}");
        return Err(Fault::new(Code::InvalidState, text).into());
    }
    // Who becomes active owned nothing before, so there is nothing to let go of.
    query("UPDATE controller SET state = $2, settled = CASE WHEN $2 = 'active' THEN $3 ELSE settled END WHERE id = $1")
        .bind(id.to_string())
        .bind(state.as_str())
        .bind(generation)
        .execute(tx.conn())
        .await?;
    record_change(tx.conn(), dialect, generation).await?;
    Ok(u64::try_from(generation).unwrap_or_default())
}

/// Notes that a controller has let go of everything that it does not own in `generation`.
pub async fn settle(tx: &mut Tx, id: ControllerId, joined: u64, generation: u64) -> Result<()> {
    query("UPDATE controller SET settled = $3 WHERE id = $1 AND generation = $2 AND settled < $3")
        .bind(id.to_string())
        .bind(joined as i64)
        .bind(generation as i64)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Leaves: the row goes.
pub async fn leave(tx: &mut Tx, id: ControllerId, joined: u64) -> Result<()> {
    let dialect = tx.dialect();
    let generation = next_generation(tx.conn()).await?;
    let rows = query("DELETE FROM controller WHERE id = $1 AND generation = $2")
        .bind(id.to_string())
        .bind(joined as i64)
        .execute(tx.conn())
        .await?;
    if rows == 1 {
        record_change(tx.conn(), dialect, generation).await?;
    }
    Ok(())
}

/// Refuses the transaction unless the controller is still the member that joined in `joined`, and keeps
/// it from being removed before the commit.
pub(super) async fn fence(conn: &mut Conn, id: ControllerId, joined: u64) -> Result<()> {
    let row = query("SELECT 1 AS here FROM controller WHERE id = $1 AND generation = $2 FOR KEY SHARE")
        .bind(id.to_string())
        .bind(joined as i64)
        .fetch_optional(conn)
        .await?;
    if row.is_some() {
        return Ok(());
    }
    Err(Fault::new(Code::StaleGeneration, "this controller is no member of the cluster any more: others act for it")
        .into())
}

/// One controller, as users see it, without its share.
pub async fn get(conn: &mut Conn, id: ControllerId) -> Result<Option<Controller>> {
    let row = query("SELECT * FROM controller WHERE id = $1").bind(id.to_string()).fetch_optional(conn).await?;
    row.as_ref().map(from_row).transpose()
}

/// Writes down what a controller says of itself.
pub async fn report(tx: &mut Tx, id: ControllerId, report: &ControllerReport) -> Result<()> {
    query("UPDATE controller SET report = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(json(report)?)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Touches the row of a controller. False when it is gone: others have taken over.
pub async fn touch(conn: &mut Conn, dialect: Dialect, id: ControllerId, joined: u64) -> Result<bool> {
    let now = dialect.now_ms();
    let sql = format!("UPDATE controller SET heartbeat_at = {now} WHERE id = $1 AND generation = $2");
    let rows = query_of(sql).bind(id.to_string()).bind(joined as i64).execute(conn).await?;
    Ok(rows == 1)
}

/// Lets the silence of those whose last touch lies in the future begin now: they touched before the database's
/// clock was set back, and would be taken for alive until it is there again.
pub async fn count_from_now(conn: &mut Conn, dialect: Dialect) -> Result<()> {
    let now = dialect.now_ms();
    let sql = format!("UPDATE controller SET heartbeat_at = {now} WHERE heartbeat_at > {now}");
    query_of(sql).execute(conn).await?;
    Ok(())
}

/// Everybody, and the generation of the ring.
pub async fn all(conn: &mut Conn, dialect: Dialect) -> Result<Membership> {
    Ok(look(conn, dialect).await?.0)
}

/// The same, and what the database's clock says.
pub async fn look(conn: &mut Conn, dialect: Dialect) -> Result<(Membership, Timestamp)> {
    let (now, connected) = (dialect.now_ms(), dialect.lock_is_held("controller.generation"));
    // One statement, so the rows and the generation are of one moment.
    let sql = format!(
        "SELECT counter.value AS ring_generation, controller.*, {now} - controller.heartbeat_at AS silent_ms,
             {now} AS told_at, {connected} AS connected
         FROM counter LEFT JOIN controller ON 1 = 1 WHERE counter.name = 'generation' ORDER BY controller.id"
    );
    let rows = query_of(sql).fetch_all(conn).await?;
    let mut membership = Membership::default();
    let told_at = rows.first().map(|row| row.time("told_at")).transpose()?.unwrap_or_default();
    for row in rows {
        membership.generation = number(row.int("ring_generation")?);
        if row.opt_text("id")?.is_none() {
            continue;
        }
        membership.controllers.push(ControllerRow {
            id: row.parse("id")?,
            addresses: addresses(&row)?,
            version: row.text("version")?,
            state: row.parse("state")?,
            joined: number(row.int("generation")?),
            settled: number(row.int("settled")?),
            started_at: row.time("started_at")?,
            heartbeat_at: row.int("heartbeat_at")?,
            silent_ms: row.int("silent_ms")?,
            connected: row.int("connected")? != 0,
        });
    }
    Ok((membership, told_at))
}

/// Removes a controller that was seen to be dead, unless it has shown life since. Answers whether it did. A failure leaves
/// a transaction open: the connection is not to be used again.
pub async fn bury(conn: &mut Conn, dialect: Dialect, dead: &ControllerRow) -> Result<bool> {
    query(dialect.begin()).execute(conn).await?;
    let generation = next_generation(conn).await?;
    let now = all(conn, dialect).await?;
    if !now.controllers.iter().any(|row| row.is_still_dead(dead)) {
        query("ROLLBACK").execute(conn).await?;
        return Ok(false);
    }
    query("DELETE FROM controller WHERE id = $1 AND generation = $2")
        .bind(dead.id.to_string())
        .bind(dead.joined as i64)
        .execute(conn)
        .await?;
    record_change(conn, dialect, generation).await?;
    query("COMMIT").execute(conn).await?;
    Ok(true)
}

/// The rings before `generation`, newest first.
pub async fn changes_before(conn: &mut Conn, generation: u64, max: u32) -> Result<Vec<RingChange>> {
    let rows = query("SELECT * FROM ring_change WHERE generation < $1 ORDER BY generation DESC LIMIT $2")
        .bind(generation as i64)
        .bind(i64::from(max))
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(RingChange {
                generation: number(row.int("generation")?),
                at: row.time("at")?,
                members: row.json("members")?,
            })
        })
        .collect()
}

/// Forgets all but the newest `keep` changes.
pub async fn trim_changes(tx: &mut Tx, keep: u32) -> Result<()> {
    query("DELETE FROM ring_change WHERE generation <= (SELECT MAX(generation) FROM ring_change) - $1")
        .bind(i64::from(keep))
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Reads a controller, as users see it, without its share.
pub fn from_row(row: &Row) -> Result<Controller> {
    Ok(Controller {
        id: row.parse("id")?,
        address: row.text("address")?,
        version: row.text("version")?,
        state: row.parse("state")?,
        generation: number(row.int("generation")?),
        started_at: row.time("started_at")?,
        heartbeat_at: row.time("heartbeat_at")?,
        share: 0.0,
        report: row.json("report")?,
        links: Default::default(),
    })
}

/// The addresses of a controller: the one that it joined with, and the others that it has reported since.
fn addresses(row: &Row) -> Result<Vec<String>> {
    // Another version may report what this one cannot read; that it lives counts all the same.
    let reported = row.json::<ControllerReport>("report").map(|report| report.addresses).unwrap_or_default();
    let first = row.text("address")?;
    let others: Vec<String> = reported.into_iter().filter(|url| *url != first).collect();
    Ok([vec![first], others].concat())
}

async fn next_generation(conn: &mut Conn) -> Result<i64> {
    super::counter::next(conn, "generation").await
}

/// Writes down the ring that the rows make now.
async fn record_change(conn: &mut Conn, dialect: Dialect, generation: i64) -> Result<()> {
    let rows = query("SELECT id FROM controller WHERE state = 'active' ORDER BY id").fetch_all(&mut *conn).await?;
    let members: Vec<ControllerId> = rows.iter().map(|row| row.parse("id")).collect::<Result<_>>()?;
    let now = dialect.now_ms();
    query_of(format!("INSERT INTO ring_change (generation, at, members) VALUES ($1, {now}, $2)"))
        .bind(generation)
        .bind(json(&members)?)
        .execute(conn)
        .await?;
    Ok(())
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}
