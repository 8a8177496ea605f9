//! What this controller says of itself, written to its row when it has changed.

use shared::Result;
use shared::api::controller::{ControllerReport, Health};

use crate::db::{self, Dialect};
use crate::services::Context;

/// Writes the report, when it differs from the one that was written last.
pub async fn run(context: Context) -> Result<()> {
    let bus = context.bus()?;
    let way = bus.transport().health();
    let services = bus.services().filter(|(_, service)| !service.disabled).map(|(name, _)| name.to_string());
    let report = ControllerReport {
        addresses: context.deps.agents.own_addresses().to_vec(),
        services: services.collect(),
        bus: Health {
            kind: if way.broker { "rabbitmq" } else { "none" }.to_string(),
            healthy: way.connected && !way.blocked,
            error: way.error,
        },
        database: Health {
            kind: match context.deps.db.dialect() {
                Dialect::Sqlite => "sqlite",
                Dialect::Postgres => "postgresql",
            }
            .to_string(),
            // It was written to say so. When that is long ago, who reads it sees that.
            healthy: true,
            error: None,
        },
    };
    let me = context.deps.ring.me();
    let written = {
        let mut conn = context.deps.db.read().await?;
        db::controller::get(&mut conn, me).await?.map(|controller| controller.report)
    };
    if written.as_ref() == Some(&report) {
        return Ok(());
    }
    context.deps.db.write(move |tx| Box::pin(async move { db::controller::report(tx, me, &report).await })).await?;
    Ok(())
}
