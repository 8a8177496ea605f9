//! Databases for tests: SQLite always, and PostgreSQL when `KRING_TEST_POSTGRES` holds the URL of a
//! server where databases may be made, such as `postgres://postgres@localhost:5432/postgres`.
//!
//! Each test gets databases of its own, which are gone after it, also when it failed.

use std::ops::Deref;

use shared::api::account::{Account, AccountKind};
use shared::api::cluster::Cluster;
use shared::api::host::{Host, HostAdminState, HostConnection};
use shared::api::image::{Image, ImageSource, ImageState};
use shared::api::network::{Network, NetworkKind};
use shared::api::storage::{Storage, StorageKind};
use shared::api::zone::Zone;
use shared::id::{AccountId, ClusterId, HostId, ImageId, NetworkId, StorageId, VmId, ZoneId};
use shared::time::Timestamp;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{Conn, Db, Result, Tx, query, query_of};

/// A query of some hundred million rows.
pub const ENDLESS: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900000000) SELECT COUNT(*) AS n FROM n";

/// A database that exists as long as this.
pub struct TestDb {
    /// The database.
    pub db: Db,
    /// Its URL.
    pub url: String,
    _keep: Keep,
}

enum Keep {
    Folder { _dir: tempfile::TempDir },
    Server { server: String, name: String },
}

impl Deref for TestDb {
    type Target = Db;
    fn deref(&self) -> &Db {
        &self.db
    }
}

/// A new database of each kind that there is.
pub async fn dbs() -> Vec<TestDb> {
    let mut dbs = vec![sqlite().await];
    if let Ok(server) = std::env::var("KRING_TEST_POSTGRES")
        && !server.is_empty()
    {
        dbs.push(postgres(server).await);
    }
    dbs
}

/// A new SQLite database, for what does not depend on the kind.
pub async fn sqlite() -> TestDb {
    let dir = tempfile::tempdir().unwrap();
    let url = Db::sqlite_url(dir.path());
    let db = Db::open(&url, &TaskTracker::new()).await.unwrap();
    TestDb { db, url, _keep: Keep::Folder { _dir: dir } }
}

async fn postgres(server: String) -> TestDb {
    let name = format!("kring_test_{}", Uuid::now_v7().simple());
    execute(&server, format!("CREATE DATABASE {name}")).await;
    // Dropped from here on, also when opening fails.
    let keep = Keep::Server { server: server.clone(), name: name.clone() };
    let url = database_url(&server, &name);
    let db = Db::open(&url, &TaskTracker::new()).await.unwrap();
    TestDb { db, url, _keep: keep }
}

/// The URL of another database on the same server.
fn database_url(server: &str, name: &str) -> String {
    let (address, options) = server.split_once('?').map_or((server, String::new()), |(a, o)| (a, format!("?{o}")));
    let authority = address.find("://").map_or(0, |at| at + 3);
    let end = address[authority..].find('/').map_or(address.len(), |at| authority + at);
    format!("{}/{name}{options}", &address[..end])
}

async fn execute(server: &str, sql: String) {
    let mut conn = Conn::connect(server).await.unwrap();
    query_of(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

impl Drop for Keep {
    fn drop(&mut self) {
        let Self::Server { server, name } = self else {
            return;
        };
        let (server, sql) = (server.clone(), format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        // A runtime of its own: this one may be ending, and its connections with it.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(execute(&server, sql));
        });
        assert!(dropped.join().is_ok() || std::thread::panicking(), "a test database could not be dropped");
    }
}

/// One of each noun that others refer to.
#[derive(Clone, Debug)]
pub struct Seed {
    /// An ordinary account.
    pub account: Account,
    /// A zone.
    pub zone: Zone,
    /// A cluster in it.
    pub cluster: Cluster,
    /// A connected host in the cluster, that nobody listens for.
    pub host: Host,
    /// A storage of the cluster that the host has not reported on.
    pub storage: Storage,
    /// An image that waits for its upload.
    pub image: Image,
    /// A network, 10.77.0.0/24, in which nobody is.
    pub network: Network,
}

/// When everything in a seed was made.
pub const SEEDED_AT: Timestamp = Timestamp(1_700_000_000_000);

impl Seed {
    /// Writes one of each into a new database.
    pub async fn plant(&self, db: &Db) {
        let seed = self.clone();
        db.write(move |tx| Box::pin(async move { seed.insert(tx).await })).await.unwrap();
    }

    /// A new database's seed, written.
    pub async fn planted(db: &Db) -> Self {
        let seed = Self::unplanted();
        seed.plant(db).await;
        seed
    }

    /// One of each, not yet written.
    #[must_use]
    pub fn unplanted() -> Self {
        let (account_id, zone_id, cluster_id) = (AccountId::new(), ZoneId::new(), ClusterId::new());
        let (links, created_at) = (shared::api::Links::new(), SEEDED_AT);
        let name = |text: &str| text.parse().unwrap();
        Self {
            account: Account { id: account_id, name: name("tenant"), kind: AccountKind::Normal, created_at },
            zone: Zone { id: zone_id, name: name("z1"), description: String::new(), created_at, links: links.clone() },
            cluster: Cluster {
                id: cluster_id,
                name: name("c1"),
                zone_id,
                description: String::new(),
                cpu_overcommit: 2.5,
                memory_overcommit: 0.1,
                created_at,
                links: links.clone(),
            },
            host: Host {
                id: HostId::new(),
                name: name("h1"),
                cluster_id,
                address: "127.0.0.1:1".to_string(),
                admin_state: HostAdminState::Enabled,
                connection: HostConnection::Connected,
                connection_reason: None,
                capacity: Default::default(),
                facts: Default::default(),
                last_seen_at: None,
                created_at,
                links: links.clone(),
            },
            storage: Storage {
                id: StorageId::new(),
                name: name("local"),
                kind: StorageKind::Local,
                cluster_id,
                path: "/var/lib/kring/volumes".to_string(),
                hosts: Vec::new(),
                capacity: None,
                created_at,
                links: links.clone(),
            },
            image: Image {
                id: ImageId::new(),
                name: name("debian"),
                account_id,
                state: ImageState::Creating,
                source: ImageSource::Upload,
                format: None,
                sha256: None,
                size: None,
                virtual_size: None,
                firmware: Default::default(),
                created_at,
                links: links.clone(),
            },
            network: Network {
                id: NetworkId::new(),
                name: name("net"),
                account_id,
                cluster_id,
                kind: NetworkKind::Nat,
                cidr: "10.77.0.0/24".parse().unwrap(),
                gateway: Some("10.77.0.1".parse().unwrap()),
                service_address: "10.77.0.2".parse().unwrap(),
                dns: vec!["9.9.9.9".parse().unwrap()],
                mtu: 1500,
                uplink: None,
                vlan: None,
                created_at,
                links,
            },
        }
    }

    async fn insert(&self, tx: &mut Tx) -> Result<()> {
        super::account::insert(tx, &self.account).await?;
        super::zone::insert(tx, &self.zone).await?;
        super::cluster::insert(tx, &self.cluster).await?;
        super::host::join(tx, &self.host).await?;
        super::storage::insert(tx, &self.storage).await?;
        super::image::insert(tx, &self.image).await?;
        super::network::insert(tx, &self.network).await
    }

    /// Adds a stopped VM from the image.
    pub async fn insert_vm(&self, tx: &mut Tx, name: &str) -> Result<VmId> {
        let id = VmId::new();
        query(
            "INSERT INTO vm (id, name, account_id, state, state_since, hostname, vcpus, memory, image_id, root_volume_id,
                 firmware, holds_compute, ssh_keys, created_at, generation, version)
             VALUES ($1, $2, $3, 'stopped', 0, $2, 1, 1, $4, $1, 'bios', 0, '[]', 0, 0, 0)",
        )
        .bind(id.to_string())
        .bind(name.to_string())
        .bind(self.account.id.to_string())
        .bind(self.image.id.to_string())
        .execute(tx.conn())
        .await?;
        Ok(id)
    }
}

/// The texts of the tables that requests leave traces in, to look for what must be nowhere.
pub async fn everything(db: &Db) -> String {
    let mut conn = db.read().await.unwrap();
    let mut texts = String::new();
    for (table, columns) in [
        ("token", "id || name || secret_sha256"),
        ("idempotency", "key || reply"),
        ("event", "path || content"),
        ("job", "data"),
    ] {
        let sql = format!("SELECT {columns} AS texts FROM {table}");
        let rows = query_of(sql).fetch_all(&mut conn).await.unwrap();
        texts.extend(rows.iter().map(|row| row.text("texts").unwrap()));
    }
    texts
}

#[test]
fn a_database_of_the_same_server_keeps_its_address_and_options() {
    let expected = "postgres://me@host:5432/other?sslmode=disable";
    assert_eq!(database_url("postgres://me@host:5432/postgres?sslmode=disable", "other"), expected);
    assert_eq!(database_url("postgres://me@host:5432", "other"), "postgres://me@host:5432/other");
}
