//! What a new cloud begins with: a zone, a cluster, a local storage and some instance types, so that
//! the first VM needs nothing but a host, an image and a network.

use std::path::Path;

use shared::api::cluster::Cluster;
use shared::api::instance_type::InstanceType;
use shared::api::storage::{Storage, StorageKind};
use shared::api::zone::Zone;
use shared::id::{ClusterId, InstanceTypeId, StorageId, ZoneId};
use shared::name::Name;
use shared::units::Bytes;
use shared::{Error, Result};

use crate::auth::ca::Ca;
use crate::clock::Clock;
use crate::config::Config;
use crate::db::{self, Db, Dialect};
use crate::settings::Settings;

/// Name, vcpus and memory in GiB of the first instance types.
const INSTANCE_TYPES: &[(&str, u32, u64)] = &[("small", 1, 1), ("medium", 2, 4), ("large", 4, 8), ("xlarge", 8, 16)];

/// Gives all controllers of a cluster one authority: the first one's, kept in the database that they
/// share. A controller alone keeps it in its data folder only.
pub async fn share_authority(db: &Db, dir: &Path, clock: &Clock) -> Result<()> {
    if db.dialect() == Dialect::Sqlite {
        return Ok(());
    }
    let kept = {
        let mut conn = db.read().await?;
        db::authority::get(&mut conn).await?
    };
    let shared = match kept {
        Some(kept) => kept,
        None => {
            let own = Ca::files(dir, clock)?;
            db.write(move |tx| Box::pin(async move { db::authority::keep(tx, &own).await })).await?
        }
    };
    Ok(Ca::adopt(dir, &shared)?)
}

/// Makes the defaults in a database that has no zone yet.
pub async fn ensure_defaults(db: &Db, clock: &Clock, config: &Config) -> Result<()> {
    let now = clock.now();
    let path = config.default_storage_path.clone();
    let settings = Settings::default();
    let made = db.write(move |tx| {
        Box::pin(async move {
            if db::zone::any(tx.conn()).await? {
                return Ok(());
            }
            let name = |name: &str| name.parse::<Name>().map_err(Error::internal);
            let zone = Zone {
                id: ZoneId::new(),
                name: name("default")?,
                description: "Made at the first start".to_string(),
                created_at: now,
                links: Default::default(),
            };
            db::zone::insert(tx, &zone).await?;
            let cluster = Cluster {
                id: ClusterId::new(),
                name: name("default")?,
                zone_id: zone.id,
                description: zone.description.clone(),
                cpu_overcommit: settings.number("placement.cpu_overcommit"),
                memory_overcommit: settings.number("placement.memory_overcommit"),
                created_at: now,
                links: Default::default(),
            };
            db::cluster::insert(tx, &cluster).await?;
            let storage = Storage {
                id: StorageId::new(),
                name: name("local")?,
                kind: StorageKind::Local,
                cluster_id: cluster.id,
                path,
                hosts: Vec::new(),
                capacity: None,
                created_at: now,
                links: Default::default(),
            };
            db::storage::insert(tx, &storage).await?;
            for (kind, vcpus, gib) in INSTANCE_TYPES {
                let kind = InstanceType {
                    id: InstanceTypeId::new(),
                    name: name(kind)?,
                    vcpus: *vcpus,
                    memory: Bytes::gib(*gib),
                    created_at: now,
                    links: Default::default(),
                };
                db::instance_type::insert(tx, &kind).await?;
            }
            Ok(())
        })
    });
    Ok(made.await?)
}
