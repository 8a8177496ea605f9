//! A PostgreSQL server of a test's own, which it may kill. `tests/lab/postgres.sh` starts it; it ends with
//! its owner.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use sqlx::{AssertSqlSafe, Connection};

use crate::cmd;

/// Servers that this process has started.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A PostgreSQL server.
pub struct Postgres {
    folder: PathBuf,
    /// `postgres://…/postgres`, with the user, without a password.
    pub url: String,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/postgres.sh")
}

impl Postgres {
    /// Starts one.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start.
    pub async fn start() -> anyhow::Result<Self> {
        cmd::run(script().as_os_str(), &[OsStr::new("sweep")]).await?;
        let n = STARTED.fetch_add(1, Relaxed);
        // A name by which servers of a process that was killed are found and removed.
        let folder = PathBuf::from(format!("/var/tmp/kring-test-postgres.{n}.{}", std::process::id()));
        // Made before it starts, so that it ends also when starting fails half-way.
        let mut server = Self { folder, url: String::new() };
        server.url = server.script("start").await?.trim().to_string();
        Ok(server)
    }

    async fn script(&self, verb: &str) -> anyhow::Result<String> {
        cmd::run(script().as_os_str(), &[OsStr::new(verb), self.folder.as_os_str()]).await
    }

    /// Makes an empty database and gives its URL.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn database(&self, name: &str) -> anyhow::Result<String> {
        sqlx::any::install_default_drivers();
        let mut connection = sqlx::AnyConnection::connect(&self.url).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&mut connection).await?;
        let base = self.url.rsplit_once('/').map_or(self.url.as_str(), |(base, _)| base);
        Ok(format!("{base}/{name}"))
    }

    /// Ends it as a crash does.
    ///
    /// # Errors
    /// When the script cannot be run.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.script("kill").await.map(drop)
    }

    /// Ends it in order, when it runs, and starts it again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.script("restart").await.map(drop)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        cmd::run_to_end(script().as_os_str(), &[OsStr::new("stop"), self.folder.as_os_str()]);
    }
}
