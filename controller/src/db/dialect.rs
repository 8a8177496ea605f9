//! Where SQLite and PostgreSQL differ: the only place that knows.

use sqlx::AnyConnection;
use sqlx::{AssertSqlSafe, Row};

use super::{Error, Result};

/// Kind of the advisory locks of heartbeats on PostgreSQL.
const HEARTBEAT_LOCK: i32 = 0x4b52;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// One file, one writer.
    Sqlite,
    /// A server.
    Postgres,
}

impl Dialect {
    /// The database that a URL names.
    pub fn of(url: &str) -> Result<Self> {
        match url.split(':').next() {
            Some("sqlite") => Ok(Self::Sqlite),
            Some("postgres" | "postgresql") => Ok(Self::Postgres),
            _ => Err(Error::Refused(shared::Error::invalid(
                "database.url",
                "must begin with sqlite: or postgres:// (for example sqlite:/var/lib/kring/kring.db)",
            ))),
        }
    }

    /// The URL that also makes the database when it is missing.
    pub(super) fn create_url(self, url: &str) -> String {
        match self {
            Self::Sqlite if url.contains('?') => format!("{url}&mode=rwc"),
            Self::Sqlite => format!("{url}?mode=rwc"),
            Self::Postgres => url.to_string(),
        }
    }

    /// SQLite has one writer; its group commit is [`super::writer`].
    pub(super) const fn write_connections(self) -> u32 {
        match self {
            Self::Sqlite => 1,
            Self::Postgres => 16,
        }
    }

    /// Queries of gathered reads of one kind that run at a time: on SQLite a second one would only make
    /// both smaller, PostgreSQL answers over a network.
    pub(super) const fn gathered_reads(self) -> usize {
        match self {
            Self::Sqlite => 1,
            Self::Postgres => 4,
        }
    }

    /// Statement that begins a write transaction.
    pub(super) const fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN",
        }
    }

    pub(super) async fn prepare_writer(self, conn: &mut AnyConnection) -> sqlx::Result<()> {
        match self {
            // FULL: a commit is on the disk before it is answered. Durability is not traded for speed.
            Self::Sqlite => {
                pragmas(
                    conn,
                    &["journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000"],
                )
                .await?;
                pragmas(conn, &["cache_size = -16384", "temp_store = MEMORY", "journal_size_limit = 67108864"]).await
            }
            // A process that is frozen in the middle of a transaction must not hold its locks for ever.
            Self::Postgres => {
                sqlx::query("SET idle_in_transaction_session_timeout = '5s'").execute(conn).await?;
                Ok(())
            }
        }
    }

    pub(super) async fn prepare_lister(self, conn: &mut AnyConnection) -> sqlx::Result<()> {
        self.prepare_reader(conn).await?;
        if self == Self::Postgres {
            // Nobody waits for it after that: see `page::list`.
            let limit = (super::page::LONGEST + std::time::Duration::from_millis(500)).as_millis();
            sqlx::query(AssertSqlSafe(format!("SET statement_timeout = {limit}"))).execute(conn).await?;
        }
        Ok(())
    }

    /// Statements that look at a part of each index, which takes milliseconds whatever its size.
    pub(super) const fn refresh_statistics(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Sqlite => Some(&["PRAGMA analysis_limit = 1000", "ANALYZE"]),
            Self::Postgres => None,
        }
    }

    pub(super) async fn prepare_reader(self, conn: &mut AnyConnection) -> sqlx::Result<()> {
        match self {
            Self::Sqlite => {
                pragmas(conn, &["query_only = ON", "busy_timeout = 10000", "cache_size = -4096"]).await?;
                pragmas(conn, &["mmap_size = 268435456", "temp_store = MEMORY"]).await
            }
            Self::Postgres => {
                sqlx::query("SET default_transaction_read_only = on").execute(conn).await?;
                Ok(())
            }
        }
    }

    /// Lets one transaction at a time pass with this key. SQLite has one writer anyway.
    pub(super) async fn lock_until_commit(self, conn: &mut AnyConnection, key: &str) -> Result<()> {
        if self == Self::Postgres {
            let key = i64::from_ne_bytes(xxhash_rust::xxh3::xxh3_64(key.as_bytes()).to_ne_bytes());
            // The lock's own answer has a type that the driver does not know.
            let sql = "SELECT 1 FROM (SELECT pg_advisory_xact_lock($1)) AS locked";
            sqlx::query(sql).bind(key).execute(conn).await?;
        }
        Ok(())
    }

    /// Takes the lock of a heartbeat, which lasts as long as the connection. False when an older
    /// connection still has it.
    pub(super) async fn take_lock(self, conn: &mut AnyConnection, number: u64) -> Result<bool> {
        if self == Self::Sqlite {
            return Ok(true);
        }
        let sql = "SELECT CAST(pg_try_advisory_lock($1, $2) AS INT) AS taken";
        let row = sqlx::query(sql).bind(HEARTBEAT_LOCK).bind(number as i32).fetch_one(conn).await?;
        Ok(row.try_get::<i32, _>("taken")? == 1)
    }

    /// Expression: 1 while some connection has the lock of the heartbeat whose number is in `column`.
    pub(super) fn lock_is_held(self, column: &str) -> String {
        match self {
            Self::Sqlite => "1".to_string(),
            Self::Postgres => format!(
                "CAST(EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
                     AND classid::bigint = {HEARTBEAT_LOCK} AND objid::bigint = {column}
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS INT)"
            ),
        }
    }

    /// Name and version of the database.
    pub(super) const fn version(self) -> &'static str {
        match self {
            Self::Sqlite => "'SQLite ' || sqlite_version()",
            Self::Postgres => "'PostgreSQL ' || current_setting('server_version')",
        }
    }

    /// Milliseconds since the epoch by the database's own clock.
    #[must_use]
    pub const fn now_ms(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
            Self::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }
}

async fn pragmas(conn: &mut AnyConnection, settings: &[&str]) -> sqlx::Result<()> {
    for setting in settings {
        sqlx::query(AssertSqlSafe(format!("PRAGMA {setting}"))).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Whether what the database says is that its disk is full (SQLite's `SQLITE_FULL`, PostgreSQL's
/// `disk_full`).
pub(super) fn is_full(error: &dyn sqlx::error::DatabaseError) -> bool {
    match error.code().unwrap_or_default().as_ref() {
        "53100" => true,
        code => code.parse::<u32>().is_ok_and(|code| code & 0xff == 13),
    }
}

/// Whether what the database says may pass by itself.
pub(super) fn is_transient(error: &dyn sqlx::error::DatabaseError) -> bool {
    passes(error.code().unwrap_or_default().as_ref())
}

/// Busy, locked or full (SQLite); connection, resources, operator or serialisation (classes 08, 53, 57, 40 of
/// PostgreSQL); a transaction that was idle for too long because this process or its way to the database
/// stood still (25P03); a server that only reads for now (25006).
fn passes(code: &str) -> bool {
    match code {
        "25P03" | "25006" => true,
        // SQLSTATE.
        _ if code.len() == 5 && (!code.bytes().all(|b| b.is_ascii_digit()) || code.starts_with(['0', '4', '5'])) => {
            ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class))
        }
        // SQLite's extended codes: the primary code is the low byte.
        _ => matches!(code.parse::<u32>().map(|code| code & 0xff), Ok(5 | 6 | 10 | 13 | 14)),
    }
}

#[cfg(test)]
mod tests {
    use super::passes;

    #[test]
    fn what_passes_by_itself_is_told_from_what_does_not() {
        for code in ["57P01", "08006", "40001", "40P01", "53300", "25P03", "25006", "5", "13", "261", "2570"] {
            assert!(passes(code), "{code}");
        }
        for code in ["23505", "23503", "42P01", "25P02", "2067", "787", ""] {
            assert!(!passes(code), "{code}");
        }
    }
}
