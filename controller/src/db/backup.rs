//! Copies of an embedded database, and what a copy that is put back needs.

use std::path::Path;

use super::{Conn, Error, Result, query};

/// How far the generation of the ring leaps when a copy is put back. Hosts refuse generations older than
/// the newest they have seen, and how many there were after the copy was made, nobody knows; a change of
/// members is one, so this is more than there can have been. Cursors of events leap as well, further: who has seen
/// those that came after the copy goes on behind them.
const LEAPS: [(&str, i64); 2] = [("generation", 1_000_000), ("event_cursor", 1_000_000_000)];

/// Writes a consistent copy of the database at `url` (SQLite) to a file that is not there yet. The
/// controller may run meanwhile.
pub async fn copy(url: &str, to: &Path) -> Result<()> {
    let mut conn = Conn::connect(url).await?;
    query("PRAGMA busy_timeout = 10000").execute(&mut conn).await?;
    let to = to.to_str().ok_or_else(|| Error::Column { column: "path".into(), value: to.display().to_string() })?;
    query("VACUUM INTO $1").bind(to.to_string()).execute(&mut conn).await?;
    conn.close().await
}

/// Checks the copy in the file of `url`, and makes it newer than whatever was done after it was made.
pub async fn revive(url: &str) -> Result<()> {
    let mut conn = Conn::connect(url).await?;
    let check = query("PRAGMA integrity_check").fetch_one(&mut conn).await?.text("integrity_check")?;
    if check != "ok" {
        return Err(Error::Column { column: "integrity_check".into(), value: check });
    }
    for (name, by) in LEAPS {
        query("UPDATE counter SET value = value + $1 WHERE name = $2").bind(by).bind(name).execute(&mut conn).await?;
    }
    conn.close().await
}
