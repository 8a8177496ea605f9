//! The engine, with a flow that counts what happens to it.

mod owners;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shared::api::job::{JobRef, JobState};
use shared::id::{AccountId, ControllerId, JobId};
use shared::{Code, Error, Result};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::*;
use crate::agent_client::Agents;
use crate::auth::tls::Pki;
use crate::clock::Clock;
use crate::config::PkiConfig;
use crate::cx::{Caller, Cx, Idempotency};
use crate::db::job::JobRow;
use crate::db::{self, Db, Tx, query};
use crate::deps::Deps;
use crate::metrics::Metrics;
use crate::placement::Placement;
use crate::ring::Ring;
use crate::settings::Settings;

/// What is "on the host": names of the steps that are applied.
type World = Arc<Mutex<HashSet<&'static str>>>;

static WORLDS: Mutex<Vec<(Uuid, World)>> = Mutex::new(Vec::new());

/// Resources on a host that answers nothing.
static HANGING: Mutex<Vec<Uuid>> = Mutex::new(Vec::new());

fn world(id: Uuid) -> World {
    let mut worlds = WORLDS.lock().unwrap();
    if let Some((_, world)) = worlds.iter().find(|(known, _)| *known == id) {
        return world.clone();
    }
    worlds.push((id, World::default()));
    worlds.last().unwrap().1.clone()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    id: Uuid,
}

struct Three;

impl Flow for Three {
    const KIND: &'static str = "test.three";
    const NOUN: &'static str = "test";
    type State = State;
    fn resource(state: &State) -> Uuid {
        state.id
    }
    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Named("accept")), Arc::new(Named("one")), Arc::new(Named("two"))]
    }
}

struct Named(&'static str);

#[async_trait]
impl Step<State> for Named {
    fn name(&self) -> &'static str {
        self.0
    }
    async fn apply(&self, _: &StepCx, state: &mut State) -> Result<()> {
        world(state.id).lock().unwrap().insert(self.0);
        Ok(())
    }
    async fn record(&self, tx: &mut Tx, _: &At, state: &mut State) -> db::Result<()> {
        let name = format!("{}-{}", state.id, self.0);
        query("INSERT INTO setting (key, value, updated_at) VALUES ($1, '1', 0)").bind(name).execute(tx.conn()).await?;
        Ok(())
    }
    async fn undo(&self, _: &StepCx, state: &State) -> Result<()> {
        if HANGING.lock().unwrap().contains(&state.id) {
            std::future::pending::<()>().await;
        }
        world(state.id).lock().unwrap().remove(self.0);
        Ok(())
    }
    async fn unrecord(&self, tx: &mut Tx, _: &At, state: &State) -> db::Result<()> {
        let name = format!("{}-{}", state.id, self.0);
        query("DELETE FROM setting WHERE key = $1").bind(name).execute(tx.conn()).await?;
        Ok(())
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    deps: Arc<Deps>,
    engine: Arc<Engine>,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let db = Db::open(&Db::sqlite_url(dir.path()), &tasks).await.unwrap();
    let me = ControllerId::new();
    let ring = Ring::new(me);
    ring.install(1, &[me]);
    let clock = Clock::default();
    let pki = Arc::new(Pki::open(dir.path().join("pki"), &[], PkiConfig::default(), clock.clone()).unwrap());
    let placement = Placement::start(db.clone(), &tasks, CancellationToken::new());
    let agents = Agents::new(
        pki.agent_client_config(16).unwrap(),
        "https://localhost".into(),
        tasks,
        CancellationToken::new(),
        clock.clone(),
        ring.clone(),
    );
    let data_dir = dir.path().to_path_buf();
    let deps = Arc::new(Deps {
        db,
        agents,
        pki,
        ring,
        placement,
        clock,
        data_dir,
        settings: Settings::default(),
        metrics: Metrics::default(),
        mover: Default::default(),
    });
    let engine = engine(&deps);
    Bench { _dir: dir, deps, engine }
}

fn engine(deps: &Arc<Deps>) -> Arc<Engine> {
    let mut flows = Flows::default();
    flows.register::<Three>();
    flows.register::<Single>();
    Engine::new(Arc::clone(deps), flows, &TaskTracker::new(), CancellationToken::new())
}

impl Bench {
    async fn submit(&self, cx: &Cx) -> Result<JobRef> {
        self.engine.submit::<Three>(cx, AccountId::new(), State { id: Uuid::now_v7() }).await
    }

    async fn job(&self, id: JobId) -> JobRow {
        let mut conn = self.deps.db.read().await.unwrap();
        db::job::get(&mut conn, id).await.unwrap().unwrap()
    }

    async fn ended(&self, engine: &Arc<Engine>, id: JobId) -> JobRow {
        loop {
            let mut watched = engine.watch(id);
            let row = self.job(id).await;
            if row.job.state.is_final() {
                return row;
            }
            let _ = tokio::time::timeout(Duration::from_secs(5), watched.left_its_lane()).await;
        }
    }

    async fn records(&self, id: Uuid) -> usize {
        let mut conn = self.deps.db.read().await.unwrap();
        query("SELECT key FROM setting WHERE key LIKE $1")
            .bind(format!("{id}-%"))
            .fetch_all(&mut conn)
            .await
            .unwrap()
            .len()
    }
}

fn cx() -> Cx {
    Cx::system(Duration::from_secs(60))
}

/// Does something at one point of one step.
struct At1 {
    step: &'static str,
    point: Point,
    /// Fails this many times; `u32::MAX` for always.
    failures: Mutex<u32>,
    code: Code,
    crash: bool,
    reached: Notify,
}

/// Panics at a point of a step.
struct Panics(&'static str, Point);

#[async_trait]
impl Probe for Panics {
    async fn pass(&self, _: JobId, _: &'static str, step: &'static str, point: Point) -> Result<()> {
        assert!((step, point) != (self.0, self.1), "a defect");
        Ok(())
    }
}

impl At1 {
    fn crash(step: &'static str, point: Point) -> Arc<Self> {
        let failures = Mutex::new(0);
        Arc::new(Self { step, point, failures, code: Code::Internal, crash: true, reached: Notify::new() })
    }
}

#[async_trait]
impl Probe for At1 {
    async fn pass(&self, _: JobId, _: &'static str, step: &'static str, point: Point) -> Result<()> {
        if (step, point) != (self.step, self.point) {
            return Ok(());
        }
        if self.crash {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
        let mut failures = self.failures.lock().unwrap();
        if *failures == 0 {
            return Ok(());
        }
        *failures -= 1;
        self.reached.notify_one();
        Err(Error::new(self.code, "injected"))
    }
}

fn probe(step: &'static str, point: Point, failures: u32, code: Code) -> Arc<At1> {
    Arc::new(At1 { step, point, failures: Mutex::new(failures), code, crash: false, reached: Notify::new() })
}

#[tokio::test]
async fn a_job_runs_its_steps_and_ends_with_an_event() {
    let bench = bench().await;
    let job = bench.submit(&cx()).await.unwrap();
    let row = bench.ended(&bench.engine, job.job_id).await;
    assert_eq!((row.job.state, row.job.progress, row.job.step), (JobState::Succeeded, 100, None));
    assert_eq!(world(job.resource.id).lock().unwrap().len(), 2);
    assert_eq!(bench.records(job.resource.id).await, 3);
    let mut conn = bench.deps.db.read().await.unwrap();
    let events = db::event::between(&mut conn, (0, i64::MAX), 10, None).await.unwrap();
    assert_eq!(events.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["/job/succeeded"]);
}

#[tokio::test]
async fn a_failure_at_any_step_leaves_a_clean_slate() {
    for step in ["one", "two"] {
        for point in [Point::BeforeApply, Point::AfterApply] {
            let bench = bench().await;
            bench.engine.set_probe(probe(step, point, u32::MAX, Code::HostFailed));
            let job = bench.submit(&cx()).await.unwrap();
            let row = bench.ended(&bench.engine, job.job_id).await;
            assert_eq!((row.job.state, row.job.step.as_deref()), (JobState::Failed, Some(step)));
            assert_eq!(row.job.error.unwrap().message, "injected");
            assert_eq!(row.job.rolled_back.last().map(String::as_str), Some("accept"));
            assert!(world(job.resource.id).lock().unwrap().is_empty());
            assert_eq!(bench.records(job.resource.id).await, 0);
        }
    }
}

#[tokio::test]
async fn what_may_pass_by_itself_is_tried_again() {
    let bench = bench().await;
    bench.engine.set_probe(probe("one", Point::AfterApply, 2, Code::HostUnreachable));
    let job = bench.submit(&cx()).await.unwrap();
    assert_eq!(bench.ended(&bench.engine, job.job_id).await.job.state, JobState::Succeeded);
}

#[tokio::test]
async fn what_fails_while_the_database_is_away_is_not_held_against_a_step() {
    let bench = bench().await;
    let ring = &bench.deps.ring;
    ring.renew_lease(Instant::now());
    while ring.may_act() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // As often as a step is tried.
    let probe = probe("one", Point::BeforeApply, 4, Code::Unavailable);
    bench.engine.set_probe(probe.clone());
    let job = bench.submit(&cx()).await.unwrap();
    probe.reached.notified().await;
    ring.renew_lease(Instant::now() + Duration::from_secs(3600));
    assert_eq!(bench.ended(&bench.engine, job.job_id).await.job.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_task_that_was_given_up_by_an_agent_does_not_cancel_a_job() {
    let bench = bench().await;
    bench.engine.set_probe(probe("one", Point::BeforeApply, 1, Code::Cancelled));
    let job = bench.submit(&cx()).await.unwrap();
    assert_eq!(bench.ended(&bench.engine, job.job_id).await.job.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_step_that_panics_has_failed() {
    let bench = bench().await;
    bench.engine.set_probe(Arc::new(Panics("two", Point::AfterApply)));
    let job = bench.submit(&cx()).await.unwrap();
    let row = bench.ended(&bench.engine, job.job_id).await;
    assert_eq!((row.job.state, row.job.step.as_deref()), (JobState::Failed, Some("two")));
    let error = row.job.error.unwrap();
    assert!(error.code == Code::Internal && error.detail.unwrap().contains("panicked"));
    assert!(world(job.resource.id).lock().unwrap().is_empty());
    assert_eq!(bench.engine.in_lanes(), 0);
}

#[tokio::test]
async fn a_crash_at_any_point_is_followed_by_the_end_of_the_job() {
    let points = [Point::BeforeApply, Point::AfterApply];
    for (step, point) in ["one", "two"].into_iter().flat_map(|step| points.map(|point| (step, point))) {
        let bench = bench().await;
        let probe = At1::crash(step, point);
        bench.engine.set_probe(probe.clone());
        let job = bench.submit(&cx()).await.unwrap();
        probe.reached.notified().await;
        // The first engine hangs in the step for ever; the second takes over under a newer generation.
        bench.deps.ring.install(2, &[bench.deps.ring.me()]);
        let second = engine(&bench.deps);
        second.recover().await.unwrap();
        assert_eq!(bench.ended(&second, job.job_id).await.job.state, JobState::Succeeded);
        assert_eq!(bench.records(job.resource.id).await, 3);
    }
}

#[tokio::test]
async fn undoing_that_fails_is_owed_and_paid_later() {
    struct FailTwoAndItsUndo(Mutex<bool>);
    #[async_trait]
    impl Probe for FailTwoAndItsUndo {
        async fn pass(&self, _: JobId, _: &'static str, step: &'static str, point: Point) -> Result<()> {
            let fails =
                *self.0.lock().unwrap() && step == "two" && matches!(point, Point::AfterApply | Point::BeforeUndo);
            if fails { Err(Error::new(Code::HostFailed, "injected")) } else { Ok(()) }
        }
    }
    let bench = bench().await;
    bench.engine.set_probe(Arc::new(FailTwoAndItsUndo(Mutex::new(true))));
    let job = bench.submit(&cx()).await.unwrap();
    let row = bench.ended(&bench.engine, job.job_id).await;
    assert_eq!((row.job.state, row.job.cleanup_owed), (JobState::Failed, vec!["two".to_string()]));
    assert_eq!(*world(job.resource.id).lock().unwrap(), HashSet::from(["two"]));
    bench.deps.clock.step(60_000);
    assert_eq!(run_due(&bench.engine).await.unwrap(), 1);
    assert!(world(job.resource.id).lock().unwrap().is_empty());
    assert!(bench.job(job.job_id).await.job.cleanup_owed.is_empty());
}

#[tokio::test]
async fn a_host_that_hangs_holds_up_no_debt_to_another() {
    let bench = bench().await;
    // In the order in which they are paid.
    let resources = [Uuid::from_u128(1), Uuid::from_u128(2)];
    HANGING.lock().unwrap().push(resources[0]);
    for resource_id in resources {
        let data = serde_json::to_string(&State { id: resource_id }).unwrap();
        let (kind, step, last_error) = (Three::KIND.to_string(), "two".to_string(), String::new());
        let id = Uuid::now_v7();
        let debt =
            db::cleanup::Cleanup { id, job_id: JobId::new(), kind, step, resource_id, data, attempts: 0, last_error };
        let now = bench.deps.clock.now();
        let owe =
            bench.deps.db.write(move |tx| Box::pin(async move { db::cleanup::insert(tx, &debt, now, now).await }));
        owe.await.unwrap();
    }
    let paid = async {
        let owed = async || db::cleanup::count(&mut bench.deps.db.read().await.unwrap()).await.unwrap();
        while owed().await > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = paid => {}
        paid = run_due(&bench.engine) => panic!("the hanging one was paid: {paid:?}"),
    }
    assert!(world(resources[1]).lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_cancelled_job_is_rolled_back() {
    let bench = bench().await;
    let probe = At1::crash("two", Point::BeforeApply);
    bench.engine.set_probe(probe.clone());
    let job = bench.submit(&cx()).await.unwrap();
    probe.reached.notified().await;
    bench.engine.request_cancel(job.job_id).await.unwrap();
    bench.engine.stop_here(job.job_id);
    let row = bench.ended(&bench.engine, job.job_id).await;
    assert_eq!(row.job.state, JobState::Cancelled);
    assert_eq!(bench.records(job.resource.id).await, 0);
    assert_eq!(bench.engine.request_cancel(job.job_id).await.unwrap_err().code, Code::InvalidState);
}

#[tokio::test]
async fn a_cancellation_that_the_owner_was_not_told_of_is_found_by_the_sweep() {
    let bench = bench().await;
    let probe = At1::crash("two", Point::BeforeApply);
    bench.engine.set_probe(probe.clone());
    let job = bench.submit(&cx()).await.unwrap();
    probe.reached.notified().await;
    bench.engine.request_cancel(job.job_id).await.unwrap();
    assert_eq!(bench.job(job.job_id).await.job.state, JobState::Running);
    bench.engine.recover().await.unwrap();
    assert_eq!(bench.ended(&bench.engine, job.job_id).await.job.state, JobState::Cancelled);
}

#[tokio::test]
async fn the_same_idempotency_key_gives_the_same_job() {
    let bench = bench().await;
    let mut cx = cx();
    cx.caller = Caller::Account { id: AccountId::new(), admin: true };
    let key = |hash: &str| Some(Arc::new(Idempotency { key: "k".into(), request_hash: hash.into() }));
    cx.idempotency = key("a");
    let first = bench.submit(&cx).await.unwrap();
    assert_eq!(bench.submit(&cx).await.unwrap(), first);
    cx.idempotency = key("b");
    assert_eq!(bench.submit(&cx).await.unwrap_err().code, Code::IdempotencyMismatch);
}

#[tokio::test]
async fn a_stale_owner_cannot_journal() {
    let bench = bench().await;
    let probe = At1::crash("one", Point::BeforeApply);
    bench.engine.set_probe(probe.clone());
    let job = bench.submit(&cx()).await.unwrap();
    probe.reached.notified().await;
    bench.deps.ring.install(2, &[bench.deps.ring.me()]);
    let second = engine(&bench.deps);
    second.recover().await.unwrap();
    bench.ended(&second, job.job_id).await;
    // The first owner wakes up and wants to fail the job.
    let me = bench.deps.ring.me();
    let stale = bench
        .deps
        .db
        .write(move |tx| {
            Box::pin(async move {
                let progress = db::job::Progress::<Error> {
                    id: job.job_id,
                    state: JobState::RollingBack,
                    step: 1,
                    data: "{}",
                    progress: 0,
                    error: None,
                    rolled_back: &[],
                    cleanup_owed: &[],
                    now: shared::time::Timestamp(0),
                    generation: 1,
                    controller_id: me,
                };
                db::job::journal(tx, &progress).await
            })
        })
        .await;
    assert!(matches!(stale, Err(db::Error::Refused(e)) if e.code == Code::StaleGeneration));
}

struct Single;

impl Flow for Single {
    const KIND: &'static str = "test.single";
    const NOUN: &'static str = "test";
    type State = State;
    fn resource(state: &State) -> Uuid {
        state.id
    }
    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Named("accept"))]
    }
}

#[tokio::test]
async fn a_flow_of_one_step_ends_too() {
    let bench = bench().await;
    let job = bench.engine.submit::<Single>(&cx(), AccountId::new(), State { id: Uuid::now_v7() }).await.unwrap();
    assert_eq!(bench.ended(&bench.engine, job.job_id).await.job.state, JobState::Succeeded);
    assert_eq!(bench.records(job.resource.id).await, 1);
}

#[tokio::test]
async fn a_dry_run_accepts_nothing() {
    let bench = bench().await;
    let mut cx = cx();
    cx.dry_run = true;
    let job = bench.submit(&cx).await.unwrap();
    let mut conn = bench.deps.db.read().await.unwrap();
    assert!(db::job::get(&mut conn, job.job_id).await.unwrap().is_none());
    assert_eq!(bench.records(job.resource.id).await, 0);
}
