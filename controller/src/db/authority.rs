//! The row of the certificate authority that all controllers of a cluster share.

use super::{Conn, Result, Tx, query};
use crate::auth::ca::Files;

/// The authority, when there is one yet.
pub async fn get(conn: &mut Conn) -> Result<Option<Files>> {
    let row = query("SELECT cert_pem, key_pem FROM authority").fetch_optional(conn).await?;
    row.map(|row| Ok(Files { cert_pem: row.text("cert_pem")?, key_pem: row.text("key_pem")? })).transpose()
}

/// Keeps `files` unless there is an authority already; answers the one that is kept.
pub async fn keep(tx: &mut Tx, files: &Files) -> Result<Files> {
    query("INSERT INTO authority (id, cert_pem, key_pem) VALUES (1, $1, $2) ON CONFLICT (id) DO NOTHING")
        .bind(files.cert_pem.clone())
        .bind(files.key_pem.clone())
        .execute(tx.conn())
        .await?;
    let kept = get(tx.conn()).await?;
    Ok(kept.unwrap_or_else(|| files.clone()))
}
