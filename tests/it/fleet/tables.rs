//! The tables that the simulation stands on answer as the real ones do: the same transactions, at random,
//! are done by both, and everything is compared after each.

use std::collections::BTreeMap;

use controller::db::controller::Membership;
use controller::db::job::{NewJob, Progress};
use controller::db::{self, Db, Dialect};
use harness::postgres::Postgres;
use harness::simulate::database::{Database, Entry};
use harness::wait::{eventually, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shared::api::job::JobResource;
use shared::id::{AccountId, ControllerId, JobId};
use shared::state::controller::ControllerState;
use shared::state::job::JobState;
use shared::time::Timestamp;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

const OPERATIONS: usize = 150;

/// Both, with what is needed to do the same to both.
struct Twins {
    real: Db,
    url: String,
    conn: db::Conn,
    model: Database,
    /// Connections that hold the locks of heartbeats.
    hearts: BTreeMap<ControllerId, db::Conn>,
    joined: BTreeMap<ControllerId, u64>,
    random: StdRng,
    /// The model's clock; the real one's differs, and only who is dead is compared.
    now: u64,
}

fn controller(n: u128) -> ControllerId {
    ControllerId::from_uuid(Uuid::from_u128(0xc0 + n))
}

fn job(n: u32) -> JobId {
    JobId::from_uuid(Uuid::from_u128(0x1000 + u128::from(n)))
}

/// What can be compared of a membership.
fn comparable(all: &Membership) -> String {
    let rows = all.controllers.iter();
    let rows = rows.map(|r| (r.id, r.state, r.joined, r.settled, r.connected, r.is_dead()));
    format!("{} {:?}", all.generation, rows.collect::<Vec<_>>())
}

impl Twins {
    async fn new(server: &Postgres, seed: u64) -> anyhow::Result<Self> {
        let url = server.database(&format!("twins{seed}")).await?;
        let real = Db::open(&url, &TaskTracker::new()).await?;
        let conn = db::Conn::connect_writer(&url, Dialect::Postgres).await?;
        Ok(Self {
            real,
            url,
            conn,
            model: Database::default(),
            hearts: BTreeMap::new(),
            joined: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
            now: 1_000_000,
        })
    }

    async fn compare(&mut self, what: &str) -> anyhow::Result<()> {
        let real = db::controller::all(&mut self.conn, Dialect::Postgres).await?;
        let model = self.model.all(self.now);
        assert_eq!(comparable(&real), comparable(&model), "after {what}");
        let before = db::controller::changes_before(&mut self.conn, real.generation, 1).await?.pop();
        let before = before.map(|change| (change.generation, change.members));
        assert_eq!(before, self.model.change_before(model.generation), "after {what}");
        let open = db::job::open_after(&mut self.conn, None, 100).await?;
        let open: Vec<_> = open.iter().map(|o| (o.id, o.resource, o.controller_id)).collect();
        let wanted: Vec<_> =
            self.model.open().into_iter().map(|(n, resource, holder)| (job(n), resource, holder)).collect();
        assert_eq!(open, wanted, "after {what}");
        for (n, row) in self.model.jobs.clone() {
            let real = db::job::get(&mut self.conn, job(n))
                .await?
                .map(|r| (r.job.state, r.next_step, r.generation, r.controller_id));
            assert_eq!(real, Some((row.state, row.step, row.generation, row.controller)), "job {n} after {what}");
        }
        Ok(())
    }

    async fn join(&mut self, id: ControllerId) -> anyhow::Result<String> {
        let real =
            self.real.write(move |tx| Box::pin(async move { db::controller::join(tx, id, "https://x:1", "1").await }));
        let (real, model) = (real.await.ok(), self.model.join(id, self.now).ok());
        assert_eq!(real, model, "{id} joins");
        if let Some(generation) = real {
            self.joined.insert(id, generation);
            self.disconnect(id).await?;
        }
        Ok(format!("join of {id}: {real:?}"))
    }

    async fn connect(&mut self, id: ControllerId, joined: u64) -> anyhow::Result<String> {
        self.disconnect(id).await?;
        let mut conn = db::Conn::connect_writer(&self.url, Dialect::Postgres).await?;
        // The server frees the lock of a connection that was closed when it comes to it, also when the row of
        // whom it belonged to is gone.
        eventually("the lock is free", async || {
            anyhow::ensure!(db::take_heartbeat_lock(&mut conn, Dialect::Postgres, joined).await?, "it is not");
            Ok(())
        })
        .await?;
        self.hearts.insert(id, conn);
        self.model.connect(id, joined, true);
        Ok(format!("{id} connects"))
    }

    async fn disconnect(&mut self, id: ControllerId) -> anyhow::Result<()> {
        if let Some(joined) = self.joined.get(&id) {
            self.model.connect(id, *joined, false);
        }
        let Some(conn) = self.hearts.remove(&id) else { return Ok(()) };
        conn.close().await?;
        // The server frees the lock when it comes to it.
        let url = self.url.clone();
        until("the lock is free", async || {
            let Ok(mut conn) = db::Conn::connect_writer(&url, Dialect::Postgres).await else { return false };
            let all = db::controller::all(&mut conn, Dialect::Postgres).await;
            all.is_ok_and(|all| all.controllers.iter().all(|row| row.id != id || !row.connected))
        })
        .await
    }

    async fn age(&mut self, id: ControllerId, by: u64) -> anyhow::Result<String> {
        self.model.age(id, by);
        let sql = "UPDATE controller SET heartbeat_at = heartbeat_at - $2 WHERE id = $1";
        db::query(sql).bind(id.to_string()).bind(by as i64).execute(&mut self.conn).await?;
        Ok(format!("{id} is silent for {by} ms"))
    }

    async fn bury(&mut self, id: ControllerId) -> anyhow::Result<String> {
        let real = db::controller::all(&mut self.conn, Dialect::Postgres).await?;
        let model = self.model.all(self.now);
        let of = |all: &Membership| all.controllers.iter().find(|row| row.id == id).cloned();
        let (Some(mut row), Some(mut twin)) = (of(&real), of(&model)) else { return Ok(String::new()) };
        // Now and then it was seen before its last heartbeat.
        let earlier = i64::from(self.random.random_bool(0.2));
        row.heartbeat_at -= earlier;
        twin.heartbeat_at -= earlier;
        let buried = db::controller::bury(&mut self.conn, Dialect::Postgres, &row).await?;
        assert_eq!(buried, self.model.bury(&twin, self.now), "bury {id}");
        Ok(format!("bury {id}: {buried}"))
    }

    async fn set_state(&mut self, id: ControllerId, state: ControllerState) -> anyhow::Result<String> {
        let real = self.real.write(move |tx| Box::pin(async move { db::controller::set_state(tx, id, state).await }));
        let (real, model) = (real.await.ok(), self.model.set_state(id, state).ok());
        assert_eq!(real, model, "{id} becomes {state}");
        Ok(format!("{id} becomes {state}: {real:?}"))
    }

    async fn membership(&mut self, id: ControllerId, joined: u64) -> anyhow::Result<String> {
        let generation = self.model.generation();
        match self.random.random_range(0..9) {
            0 => self.join(id).await,
            1 => self.connect(id, joined).await,
            2 => self.disconnect(id).await.map(|()| format!("{id} disconnects")),
            3 => {
                let by = [4000, 11_000][self.random.random_range(0..2)];
                self.age(id, by).await
            }
            4 => self.bury(id).await,
            5 => {
                let states = [ControllerState::Active, ControllerState::Draining, ControllerState::Active];
                let state = states[self.random.random_range(0..3)];
                self.set_state(id, state).await
            }
            6 => {
                let settled = self
                    .real
                    .write(move |tx| Box::pin(async move { db::controller::settle(tx, id, joined, generation).await }));
                settled.await?;
                self.model.settle(id, joined, generation);
                Ok(format!("{id} settles in {generation}"))
            }
            7 => {
                self.real.write(move |tx| Box::pin(async move { db::controller::leave(tx, id, joined).await })).await?;
                self.model.leave(id, joined);
                Ok(format!("{id} leaves"))
            }
            _ => {
                let touched = db::controller::touch(&mut self.conn, Dialect::Postgres, id, joined).await?;
                assert_eq!(touched, self.model.touch(id, joined, self.now), "touch {id}");
                assert_eq!(touched, self.model.is_member(id, joined));
                Ok(format!("touch of {id}: {touched}"))
            }
        }
    }

    async fn job(&mut self, id: ControllerId) -> anyhow::Result<String> {
        let n = self.random.random_range(0..5_u32);
        let generation = self.model.generation().saturating_sub(self.random.random_range(0..2));
        let resource = Uuid::from_u128(0xa0 + u128::from(n));
        match self.random.random_range(0..6) {
            _ if !self.model.jobs.contains_key(&n) => {
                self.real
                    .write(move |tx| {
                        Box::pin(async move { db::job::insert(tx, &new_job(n, resource, id, generation)).await })
                    })
                    .await?;
                self.model.insert(n, resource, id, generation);
                Ok(format!("job {n} of {id}"))
            }
            0 => {
                let claimed = self
                    .real
                    .write(move |tx| Box::pin(async move { db::job::claim(tx, job(n), id, generation).await }))
                    .await?;
                let claimed = claimed.map(|row| (row.generation, row.controller_id));
                let model = self.model.claim(n, id, generation).map(|row| (row.generation, row.controller));
                assert_eq!(claimed, model, "{id} claims {n} in {generation}");
                Ok(format!("{id} claims {n}: {claimed:?}"))
            }
            1 => {
                self.real.write(move |tx| Box::pin(async move { db::job::release(tx, job(n), id).await })).await?;
                self.model.release(n, id);
                Ok(format!("{id} releases {n}"))
            }
            _ => self.journal(n, id, generation).await,
        }
    }

    async fn journal(&mut self, n: u32, id: ControllerId, generation: u64) -> anyhow::Result<String> {
        let states =
            [JobState::Running, JobState::Running, JobState::RollingBack, JobState::Succeeded, JobState::Failed];
        let ends = self.random.random_bool(0.2);
        let state = states[self.random.random_range(0..if ends { 5 } else { 3 })];
        let (step, again) = (self.random.random_range(1..4), self.random.random_bool(0.3));
        let entry = Entry { state, step, undone: 0, owed: None, generation };
        let forward = matches!(state, JobState::Running | JobState::Succeeded);
        let real = self.real.write(move |tx| {
            Box::pin(async move {
                if again && forward && db::job::recorded(tx, job(n), step).await?.is_some() {
                    return Ok(());
                }
                let progress = Progress::<shared::Error> {
                    id: job(n),
                    state,
                    step,
                    data: "{}",
                    progress: 0,
                    error: None,
                    rolled_back: &[],
                    cleanup_owed: &[],
                    now: Timestamp(1),
                    generation,
                    controller_id: id,
                };
                db::job::journal(tx, &progress).await
            })
        });
        let (real, model) = (real.await.is_ok(), self.model.journal(n, id, &entry, again).is_ok());
        assert_eq!(real, model, "{id} journals {n}: {entry:?}, again: {again}");
        Ok(format!("{id} journals {n}: {entry:?}: {real}"))
    }
}

fn new_job(n: u32, resource: Uuid, controller_id: ControllerId, generation: u64) -> NewJob {
    NewJob {
        id: job(n),
        kind: "test.twins",
        resource: JobResource { kind: "test".into(), id: resource },
        account_id: AccountId::new(),
        request_id: String::new(),
        traceparent: String::new(),
        steps: vec!["one", "two", "three", "four"],
        step: 1,
        data: "{}".into(),
        created_at: Timestamp(0),
        deadline_at: Timestamp(0),
        generation,
        controller_id,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulated_tables_answer_as_the_real_ones_do() -> anyhow::Result<()> {
    let server = Postgres::start().await?;
    for seed in 1..=4 {
        let mut twins = Twins::new(&server, seed).await?;
        for n in 0..OPERATIONS {
            let id = controller(twins.random.random_range(0..3));
            let what = match twins.joined.get(&id).copied() {
                None => twins.join(id).await?,
                Some(joined) if twins.random.random_bool(0.5) => twins.membership(id, joined).await?,
                Some(_) => twins.job(id).await?,
            };
            twins.compare(&format!("seed {seed}, operation {n}, {what}")).await?;
        }
    }
    Ok(())
}
