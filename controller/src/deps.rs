//! What the steps of flows and the services may use besides the bus.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use shared::Result;
use shared::id::{JobId, VmId};

use crate::agent_client::Agents;
use crate::auth::tls::Pki;
use crate::clock::Clock;
use crate::db::Db;
use crate::metrics::Metrics;
use crate::placement::Placement;
use crate::ring::Ring;
use crate::settings::Settings;

/// Database, agents, ring, clock, settings and figures of this controller.
pub struct Deps {
    /// The database.
    pub db: Db,
    /// The agents on the hosts.
    pub agents: Arc<Agents>,
    /// The certificate authority.
    pub pki: Arc<Pki>,
    /// Who owns what.
    pub ring: Ring,
    /// The hosts as places for VMs.
    pub placement: Arc<Placement>,
    /// The wall clock.
    pub clock: Clock,
    /// Folder with uploaded images, certificates and the embedded database.
    pub data_dir: PathBuf,
    /// Settings, as they are now.
    pub settings: Settings,
    /// Figures of this process.
    pub metrics: Metrics,
    /// Moves VMs for the steps of other services' flows; set when the services start.
    pub mover: OnceLock<Arc<dyn Mover>>,
}

/// What has VMs moved to other hosts.
#[async_trait]
pub trait Mover: Send + Sync {
    /// Has a VM moved to whichever host fits; answers the job that does it.
    ///
    /// # Errors
    /// Those of accepting a migration.
    async fn migrate(&self, vm: VmId) -> Result<JobId>;
}
