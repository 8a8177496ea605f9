//! Jobs whose resource moves from one controller to another.

use super::*;

/// The same database as another controller sees it, which owns what `members` leave it.
fn other_controller(bench: &Bench) -> (Arc<Deps>, Arc<Engine>) {
    let ring = Ring::new(ControllerId::new());
    let Deps { db, agents, pki, placement, clock, data_dir, .. } = bench.deps.as_ref();
    let deps = Arc::new(Deps {
        mover: Default::default(),
        db: db.clone(),
        agents: Arc::clone(agents),
        pki: Arc::clone(pki),
        ring,
        placement: Arc::clone(placement),
        clock: clock.clone(),
        data_dir: data_dir.clone(),
        settings: Settings::default(),
        metrics: Metrics::default(),
    });
    let engine = engine(&deps);
    (deps, engine)
}

async fn alive(bench: &Bench, ids: &[ControllerId]) {
    let ids = ids.to_vec();
    let insert = bench.deps.db.write(move |tx| {
        Box::pin(async move {
            query("DELETE FROM controller").execute(tx.conn()).await?;
            for id in ids {
                query(
                    "INSERT INTO controller (id, address, version, generation, started_at, heartbeat_at, state, settled)
                     VALUES ($1, '', '', 1, 0, 0, 'active', 1)",
                )
                .bind(id.to_string())
                .execute(tx.conn())
                .await?;
            }
            Ok(())
        })
    });
    insert.await.unwrap();
}

/// A job that is held at a point of its step `one`, and a second controller beside the one that has it.
async fn held_at(point: Point) -> (Bench, JobRef, Arc<Deps>, Arc<Engine>) {
    let bench = bench().await;
    let probe = At1::crash("one", point);
    bench.engine.set_probe(probe.clone());
    let (deps, second) = other_controller(&bench);
    alive(&bench, &[bench.deps.ring.me(), deps.ring.me()]).await;
    let job = bench.submit(&cx()).await.unwrap();
    probe.reached.notified().await;
    (bench, job, deps, second)
}

#[tokio::test]
async fn a_job_whose_resource_moves_goes_on_with_its_new_owner() {
    let (bench, job, deps, second) = held_at(Point::AfterApply).await;
    let (me, other) = (bench.deps.ring.me(), deps.ring.me());
    bench.deps.ring.install(2, &[other]);
    deps.ring.install(2, &[other]);
    // The old owner lives and has not let go: nobody else may touch the job.
    let mut looked = second.watch(job.job_id);
    assert_eq!(second.recover().await.unwrap(), 1);
    looked.left_its_lane().await;
    drop(looked);
    assert_eq!(second.watched(), 0);
    let row = bench.job(job.job_id).await;
    assert_eq!((row.controller_id, row.job.state.is_final()), (Some(me), false));
    let heir = Arc::clone(&second);
    bench.engine.on_release(move |id, resource| heir.enqueue(id, resource));
    bench.engine.let_go();
    let row = bench.ended(&second, job.job_id).await;
    assert_eq!((row.job.state, row.controller_id), (JobState::Succeeded, Some(other)));
    assert_eq!(bench.records(job.resource.id).await, 3);
}

#[tokio::test]
async fn a_job_of_a_controller_that_is_no_member_any_more_is_taken() {
    let (bench, job, deps, second) = held_at(Point::BeforeApply).await;
    let other = deps.ring.me();
    alive(&bench, &[other]).await;
    deps.ring.install(2, &[other]);
    assert_eq!(second.recover().await.unwrap(), 1);
    let row = bench.ended(&second, job.job_id).await;
    assert_eq!((row.job.state, row.controller_id), (JobState::Succeeded, Some(other)));
}

#[tokio::test]
async fn a_job_that_an_earlier_life_of_a_controller_held_is_taken_by_its_new_owner() {
    let (bench, job, deps, second) = held_at(Point::BeforeApply).await;
    let (me, other) = (bench.deps.ring.me(), deps.ring.me());
    // It has died, and is back before anybody missed it; meanwhile the resource went to the other one.
    let join = bench.deps.db.write(move |tx| Box::pin(async move { db::controller::join(tx, me, "", "").await }));
    join.await.unwrap();
    alive(&bench, &[me, other]).await;
    deps.ring.install(2, &[other]);
    assert_eq!(second.recover().await.unwrap(), 1);
    let row = bench.ended(&second, job.job_id).await;
    assert_eq!((row.job.state, row.controller_id), (JobState::Succeeded, Some(other)));
}
