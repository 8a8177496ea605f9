//! Controllers through the bus.

use shared::Code;
use shared::api::controller::ControllerState;
use shared::api::page::ListParams;
use uuid::Uuid;

use crate::db::{self, query};
use crate::messages::controller::{DrainController, GetController, GetOwnership, ListControllers};
use crate::services::testing::systems;

#[tokio::test]
async fn a_controller_alone_owns_all_and_cannot_be_drained() {
    for system in systems().await {
        let me = system.context.deps.ring.me();
        let joined = system.context.deps.db.write(move |tx| {
            Box::pin(async move {
                let joined = db::controller::join(tx, me, "https://one:8443", "1.0").await?;
                db::controller::set_state(tx, me, ControllerState::Active).await?;
                Ok(joined)
            })
        });
        let joined = joined.await.unwrap();
        super::report(system.context.clone()).await.unwrap();
        let one = system.by_tenant(GetController { id: me }).await.unwrap();
        assert_eq!((one.state, one.generation, one.share), (ControllerState::Active, joined, 1.0));
        assert_eq!(one.links.keys().collect::<Vec<_>>(), ["drain", "self"]);
        assert!(one.report.database.healthy && one.report.services.contains(&"vm".to_string()), "{one:?}");
        let q = Some("state = active".to_string());
        let listed =
            system.by_tenant(ListControllers { params: ListParams { q, ..Default::default() } }).await.unwrap();
        assert_eq!(listed.items, [one]);
        let alone = system.by_admin(DrainController { id: me }).await.unwrap_err();
        assert_eq!(alone.code, Code::InvalidState);
        let owner = system.by_tenant(GetOwnership { id: Uuid::from_u128(7) }).await.unwrap();
        assert_eq!((owner.controller_id, owner.address.as_str()), (me, "https://one:8443"));
    }
}

#[tokio::test]
async fn who_shows_no_life_is_buried_and_who_does_is_not() {
    for system in systems().await {
        let db = &system.context.deps.db;
        let (one, two) = (shared::id::ControllerId::new(), shared::id::ControllerId::new());
        // Written by hand: an embedded database lets nobody else join.
        let insert = db.write(move |tx| {
            Box::pin(async move {
                for (id, heartbeat_at) in [(one, 0_i64), (two, i64::MAX / 2)] {
                    query(
                        "INSERT INTO controller (id, address, version, generation, started_at, heartbeat_at, state, settled)
                         VALUES ($1, '', '', 1, 0, $2, 'active', 1)",
                    )
                    .bind(id.to_string())
                    .bind(heartbeat_at)
                    .execute(tx.conn())
                    .await?;
                }
                Ok(())
            })
        });
        insert.await.unwrap();
        let database = system.by_tenant(GetController { id: one }).await.unwrap().report.database;
        assert!(database.error.is_some_and(|error| error.contains("its last heartbeat came")));
        let mut conn = db::Conn::connect_writer(&system.db.url, db.dialect()).await.unwrap();
        let seen = db::controller::all(&mut conn, db.dialect()).await.unwrap();
        let row = |id| seen.controllers.iter().find(|row| row.id == id).unwrap();
        assert!(row(one).is_dead() && !row(two).is_dead());
        assert!(!db::controller::bury(&mut conn, db.dialect(), row(two)).await.unwrap());
        assert!(db::controller::bury(&mut conn, db.dialect(), row(one)).await.unwrap());
        assert!(!db::controller::bury(&mut conn, db.dialect(), row(one)).await.unwrap(), "once");
        let after = db::controller::all(&mut conn, db.dialect()).await.unwrap();
        assert_eq!((after.generation, after.controllers.len()), (seen.generation + 1, 1));
        let changes = db::controller::changes_before(&mut conn, after.generation + 1, 10).await.unwrap();
        assert_eq!((changes[0].generation, changes[0].members.as_slice()), (after.generation, [two].as_slice()));
        // A touch in the future, from before the clock was set back, is one of now.
        assert!(after.controllers[0].silent_ms < -1000);
        db::controller::count_from_now(&mut conn, db.dialect()).await.unwrap();
        let now = db::controller::all(&mut conn, db.dialect()).await.unwrap();
        assert!((0..60_000).contains(&now.controllers[0].silent_ms), "{now:?}");
    }
}
