//! Where SQLite and PostgreSQL differ: the only place that knows.

use std::time::Duration;

use sqlx::migrate::Migrator;

use super::{Conn, Error, Result, query};

/// Kinds of the advisory locks on PostgreSQL: of heartbeats, and of transactions that number events.
const HEARTBEAT_LOCK: i32 = 0x4b52;
const EVENT_LOCK: i32 = 0x4b45;
/// The part of an event's number that such a lock can tell, and half of what that counts to.
const LOW: i64 = 0x7fff_ffff;
const HALF: i64 = 0x4000_0000;
/// Condition: the advisory locks with a kind that are held in this database.
const LOCKS_OF_TWO_NUMBERS: &str = "locktype = 'advisory' AND granted AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

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

    /// Statements with which a connection that writes begins.
    pub(super) fn writer_settings(self) -> Vec<String> {
        match self {
            // FULL: a commit is on the disk before it is answered. Durability is not traded for speed.
            Self::Sqlite => pragmas(&[
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
                "busy_timeout = 10000",
                "cache_size = -16384",
                "temp_store = MEMORY",
                // 16 MB: what is written again and again goes from the log into the database less often.
                "wal_autocheckpoint = 4000",
                "journal_size_limit = 67108864",
            ]),
            // A process that is frozen in the middle of a transaction must not hold its locks for ever.
            Self::Postgres => vec!["SET idle_in_transaction_session_timeout = '5s'".to_string()],
        }
    }

    /// Statements with which one that reads begins.
    pub(super) fn reader_settings(self) -> Vec<String> {
        match self {
            Self::Sqlite => {
                pragmas(&["query_only = ON", "busy_timeout = 10000", "cache_size = -4096", "temp_store = MEMORY"])
            }
            Self::Postgres => vec!["SET default_transaction_read_only = on".to_string()],
        }
    }

    /// Statements with which one begins whose reads may take long, but no longer than `limit`.
    pub(super) fn long_reader_settings(self, limit: Duration) -> Vec<String> {
        let mut settings = self.reader_settings();
        if self == Self::Postgres {
            settings.push(format!("SET statement_timeout = {}", limit.as_millis()));
        }
        settings
    }

    /// Statements that look at a part of each index, which takes milliseconds whatever its size.
    pub(super) const fn refresh_statistics(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Sqlite => Some(&["PRAGMA analysis_limit = 1000", "ANALYZE"]),
            Self::Postgres => None,
        }
    }

    /// Lets one transaction at a time pass with this key. SQLite has one writer anyway.
    pub(super) async fn lock_until_commit(self, conn: &mut Conn, key: &str) -> Result<()> {
        if self == Self::Postgres {
            let key = i64::from_ne_bytes(xxhash_rust::xxh3::xxh3_64(key.as_bytes()).to_ne_bytes());
            // The lock's own answer has a type that the driver does not know.
            let sql = "SELECT 1 FROM (SELECT pg_advisory_xact_lock($1)) AS locked";
            query(sql).bind(key).execute(conn).await?;
        }
        Ok(())
    }

    /// Migrations of this database alone. Versions are counted together with those of both.
    pub(super) fn migrations(self) -> Migrator {
        match self {
            Self::Sqlite => Migrator::DEFAULT,
            Self::Postgres => sqlx::migrate!("./migrations/postgres"),
        }
    }

    /// A statement that inserts `rows` of events, whose first column is the cursor on SQLite. On a server it is only
    /// the order of the rows, which are numbered there. Before that, the transaction takes a lock that tells the
    /// number behind which its own will be. (The sequence is asked by its function: a look at its row may see the
    /// greater number that is written to the log meanwhile.)
    pub(super) fn insert_events(self, columns: &[&str], rows: &str) -> String {
        let all = columns.join(", ");
        match self {
            Self::Sqlite => format!("INSERT INTO event ({all}) {rows}"),
            Self::Postgres => format!(
                "WITH begun AS MATERIALIZED (
                     SELECT pg_advisory_xact_lock_shared({EVENT_LOCK},
                         CAST(pg_sequence_last_value('event_cursor') & {LOW} AS INT)) IS NULL AS never)
                 INSERT INTO event ({all})
                 SELECT nextval('event_cursor'), {others}
                 FROM (SELECT added.* FROM begun, ({rows}) AS added ({all}) WHERE NOT never ORDER BY added.cursor) AS added",
                others = columns[1..].join(", ")
            ),
        }
    }

    /// A statement that tells the newest cursor of an event, and the one up to which no more can come: the least of
    /// those behind which the numbers of running transactions are. In this order: whoever takes a lock after the
    /// newest was read has greater numbers.
    pub(super) fn cursors(self) -> String {
        match self {
            Self::Sqlite => {
                "SELECT value AS newest, value AS settled FROM counter WHERE name = 'event_cursor'".to_string()
            }
            Self::Postgres => format!(
                "WITH counted AS MATERIALIZED (SELECT pg_sequence_last_value('event_cursor') AS newest)
                 SELECT newest, newest - GREATEST(0, (
                     SELECT MAX(((newest - objid::bigint + {HALF}) & {LOW}) - {HALF}) FROM pg_locks
                     WHERE {LOCKS_OF_TWO_NUMBERS} AND classid::bigint = {EVENT_LOCK})) AS settled
                 FROM counted"
            ),
        }
    }

    /// Takes the lock of a heartbeat, which lasts as long as the connection. False when an older
    /// connection still has it.
    pub(super) async fn take_lock(self, conn: &mut Conn, number: u64) -> Result<bool> {
        if self == Self::Sqlite {
            return Ok(true);
        }
        let sql = "SELECT CAST(pg_try_advisory_lock(CAST($1 AS INT), CAST($2 AS INT)) AS INT) AS taken";
        let row = query(sql).bind(i64::from(HEARTBEAT_LOCK)).bind(number as i64).fetch_one(conn).await?;
        Ok(row.int("taken")? == 1)
    }

    /// Expression: 1 while some connection has the lock of the heartbeat whose number is in `column`.
    pub(super) fn lock_is_held(self, column: &str) -> String {
        match self {
            Self::Sqlite => "1".to_string(),
            Self::Postgres => format!(
                "CAST(EXISTS (SELECT 1 FROM pg_locks WHERE {LOCKS_OF_TWO_NUMBERS}
                     AND classid::bigint = {HEARTBEAT_LOCK} AND objid::bigint = {column}) AS INT)"
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

fn pragmas(settings: &[&str]) -> Vec<String> {
    settings.iter().map(|setting| format!("PRAGMA {setting}")).collect()
}

/// Whether a code of the database says that its disk is full.
pub(super) fn is_full(code: &str) -> bool {
    code == "53100" || primary(code) == Some(13)
}

/// Whether it says that a statement took longer than it may.
pub(super) fn took_too_long(code: &str) -> bool {
    code == "57014" || primary(code) == Some(9)
}

/// Whether it says that a unique key stood in the way.
pub(super) fn is_unique_violation(code: &str) -> bool {
    matches!(code, "23505" | "2067" | "1555")
}

/// Whether it says that a row that others refer to stood in the way.
pub(super) fn is_foreign_key_violation(code: &str) -> bool {
    matches!(code, "23503" | "787")
}

/// Whether what it says may pass by itself: busy, locked or full (SQLite); connection, resources, operator or
/// serialisation (classes 08, 53, 57, 40 of PostgreSQL); a transaction that was idle for too long because this
/// process or its way to the database stood still (25P03); a server that only reads for now (25006).
pub(super) fn is_transient(code: &str) -> bool {
    match code {
        "25P03" | "25006" => true,
        _ if took_too_long(code) => true,
        _ if is_sqlstate(code) => ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)),
        _ => matches!(primary(code), Some(5 | 6 | 10 | 13 | 14)),
    }
}

fn is_sqlstate(code: &str) -> bool {
    code.len() == 5 && (!code.bytes().all(|b| b.is_ascii_digit()) || code.starts_with(['0', '4', '5']))
}

/// The primary code in an extended code of SQLite: its low byte.
fn primary(code: &str) -> Option<u32> {
    if is_sqlstate(code) { None } else { code.parse::<u32>().ok().map(|code| code & 0xff) }
}

#[cfg(test)]
mod tests {
    use super::{is_full, is_transient};

    #[test]
    fn what_passes_by_itself_is_told_from_what_does_not() {
        for code in ["57P01", "08006", "40001", "40P01", "53300", "25P03", "25006", "5", "13", "261", "2570"] {
            assert!(is_transient(code), "{code}");
        }
        for code in ["23505", "23503", "42P01", "25P02", "2067", "787", ""] {
            assert!(!is_transient(code), "{code}");
        }
        assert!(["53100", "13", "269"].into_iter().all(is_full) && !["53200", "5", "08006"].into_iter().any(is_full));
    }
}
