//! Taking the values over from the database.

use shared::Result;

use crate::db;
use crate::deps::Deps;
use crate::settings::definition;

/// Reads all settings. A value that this version does not know or allow any more is left out, so its
/// default applies.
pub async fn load(deps: &Deps) -> Result<()> {
    let rows = {
        let mut conn = deps.db.read().await?;
        db::setting::all(&mut conn).await?
    };
    let known = rows.into_iter().filter(|(key, row)| {
        let checked = definition(key).and_then(|definition| definition.check(&row.value));
        if let Err(error) = &checked {
            tracing::warn!(setting.key = key, error = error.chain(), "a setting is left at its default");
        }
        checked.is_ok()
    });
    deps.settings.install(known.map(|(key, row)| (key, row.value)).collect());
    Ok(())
}
