//! What the bare program writes: a row for each that asks, durable before it is answered. Into a file of SQLite by one
//! thread, as many rows in a commit as Kring had there; to a server by as many connections as Kring has, each row by itself.

use std::path::Path;
use std::sync::mpsc;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::TEXT;

/// Connections to a server.
const CONNECTIONS: u32 = 16;

/// Where rows go.
#[derive(Clone)]
pub(super) enum Rows {
    File(mpsc::Sender<oneshot::Sender<()>>),
    Server(PgPool),
}

impl Rows {
    /// In the folder, with so many rows in a commit at the most.
    pub(super) fn in_file(folder: &Path, together: usize) -> anyhow::Result<Self> {
        let conn = rusqlite::Connection::open(folder.join("rows.db"))?;
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID",
        )?;
        let (rows, asked) = mpsc::channel::<oneshot::Sender<()>>();
        let run = move || -> rusqlite::Result<()> {
            while let Ok(first) = asked.recv() {
                let mut group = vec![first];
                group.extend(asked.try_iter().take(together - 1));
                conn.execute_batch("BEGIN IMMEDIATE")?;
                for _ in &group {
                    conn.prepare_cached("INSERT INTO t (id, body) VALUES (?1, ?2)")?.execute((id(), TEXT))?;
                }
                conn.execute_batch("COMMIT")?;
                for waiting in group {
                    // Nobody waits any more when this fails.
                    let _ = waiting.send(());
                }
            }
            Ok(())
        };
        // When it fails, whoever waits is told by the channel that closes.
        std::thread::Builder::new().name("writer".into()).spawn(run)?;
        Ok(Self::File(rows))
    }

    /// In a table of its own of a database on a server.
    pub(super) async fn on_server(url: &str) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false).connect(url).await?;
        sqlx::query("DROP TABLE IF EXISTS bare").execute(&pool).await?;
        sqlx::query("CREATE TABLE bare (id TEXT PRIMARY KEY, body TEXT NOT NULL)").execute(&pool).await?;
        Ok(Self::Server(pool))
    }

    /// Adds one; it is durable when this has ended.
    pub(super) async fn add(&self) -> anyhow::Result<()> {
        match self {
            Self::File(rows) => {
                let (answer, durable) = oneshot::channel();
                rows.send(answer)?;
                Ok(durable.await?)
            }
            Self::Server(pool) => {
                let row = sqlx::query("INSERT INTO bare (id, body) VALUES ($1, $2)").bind(id()).bind(TEXT);
                row.execute(pool).await?;
                Ok(())
            }
        }
    }
}

fn id() -> String {
    Uuid::now_v7().to_string()
}
