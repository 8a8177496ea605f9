//! Pools of connections. A way to a database server may cease to be one in silence (a firewall forgets it, a
//! machine is gone): whoever writes into such a connection hears nothing for many minutes. So nobody waits
//! for a connection without a limit, and none goes back into its pool without having answered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AssertSqlSafe, Connection};

use super::Dialect;

/// How long a connection may take to answer a ping, and how long a caller waits for one that does.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection that was in use so shortly ago is used again without being asked whether it is well.
const FRESH: Duration = Duration::from_secs(1);

/// How the pools of a database are made, whose connections begin with these statements.
pub(super) fn options(dialect: Dialect, most: u32, settings: Vec<String>) -> AnyPoolOptions {
    let settings: Arc<[String]> = settings.into();
    let options = AnyPoolOptions::new().max_connections(most).test_before_acquire(false);
    let options = options.after_connect(move |conn, _| {
        let settings = Arc::clone(&settings);
        async move {
            for setting in &*settings {
                sqlx::query(AssertSqlSafe(setting.clone())).execute(&mut *conn).await?;
            }
            Ok(())
        }
        .boxed()
    });
    if dialect == Dialect::Sqlite {
        // A way to a file does not cease, and a ping costs as much as most queries.
        return options;
    }
    options
        .acquire_timeout(PATIENCE)
        .before_acquire(|conn, meta| async move { Ok(meta.idle_for < FRESH || answers(conn).await) }.boxed())
        .after_release(|conn, _| async move { Ok(answers(conn).await) }.boxed())
}

async fn answers(conn: &mut AnyConnection) -> bool {
    matches!(tokio::time::timeout(ANSWERS_WITHIN, conn.ping()).await, Ok(Ok(())))
}
