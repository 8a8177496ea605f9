//! A look at a database that changes nothing: whether it answers, and whose it is.

use super::{Conn, Dialect, Result, migrations, query, query_of};

/// What a database answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Version of its schema; `None` when Kring was never there.
    pub schema: Option<i64>,
    /// Its name and version.
    pub version: String,
    /// Its clock.
    pub now_ms: i64,
}

/// Asks the database at `url`.
pub async fn ask(url: &str, dialect: Dialect) -> Result<Probe> {
    let mut conn = Conn::connect(url).await?;
    let sql = format!("SELECT {} AS now_ms, {} AS version", dialect.now_ms(), dialect.version());
    let row = query_of(sql).fetch_one(&mut conn).await?;
    // The table is not there before the first start.
    let schema = query("SELECT MAX(version) AS schema FROM _sqlx_migrations").fetch_one(&mut conn).await;
    let probe = Probe {
        schema: schema.ok().and_then(|row| row.opt_int("schema").ok().flatten()),
        version: row.text("version")?,
        now_ms: row.int("now_ms")?,
    };
    conn.close().await?;
    Ok(probe)
}

/// The newest schema that this release knows of such a database.
#[must_use]
pub fn newest(dialect: Dialect) -> i64 {
    migrations(dialect).iter().map(|migration| migration.version).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::dbs;

    #[tokio::test]
    async fn a_database_of_this_release_is_recognised() {
        for db in dbs().await {
            let probe = ask(&db.url, db.dialect()).await.unwrap();
            assert_eq!(probe.schema, Some(newest(db.dialect())));
            assert!(probe.version.contains("SQL") && probe.now_ms > 1_700_000_000_000, "{probe:?}");
        }
    }

    #[tokio::test]
    async fn an_empty_one_and_none_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("empty.db");
        let url = format!("sqlite:{}", file.display());
        assert!(ask(&url, Dialect::Sqlite).await.is_err(), "it is not made");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(ask(&url, Dialect::Sqlite).await.unwrap().schema, None);
    }
}
