//! Many controllers under fault: a message broker and a database server of a test's own, controllers as
//! processes of their own, each with its own ways to both that can be cut, and simulated hosts that know all
//! of them.
//!
//! - [`Fleet`]: all of it. - [`Controller`]: one process, killed, frozen, stopped and started again.
//! - [`Api`]: a client that goes from one controller to the next. - [`Load`]: what users do meanwhile.
//! - [`Tally`]: what became of everything that was accepted.

mod api;
mod controller;
mod load;
mod tally;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::controller::ring::HashRing;
use anyhow::Context;
use reqwest::Method;
use shared::api::controller::Ownership;
use shared::api::image::Image;
use shared::api::network::Network;
use shared::api::setting::{Setting, UpdateSetting};
use shared::api::zone::CreateZone;
use shared::id::{ControllerId, ZoneId};
use tempfile::TempDir;
use uuid::Uuid;

pub use api::{Api, Called};
pub use controller::Controller;
pub use load::Load;
pub use tally::Tally;

use crate::broker::Broker;
use crate::client::Client;
use crate::cmd;
use crate::postgres::Postgres;
use crate::proxy::Link;
use crate::sim::{Options, Sim};
use crate::snapshot::Database;
use crate::wait::eventually;
use crate::world::World;

/// Several controllers with all that they need. What is asked of [`World`] is asked of it, through the
/// first controller.
pub struct Fleet {
    /// The controllers.
    pub controllers: Vec<Arc<Controller>>,
    /// The API, through all of them.
    pub api: Arc<Api>,
    /// An image that is ready.
    pub image: Image,
    /// A network.
    pub network: Network,
    /// A look into their database, past their ways to it.
    pub database: Database,
    world: World,
    /// The message broker.
    pub broker: Broker,
    /// The database server.
    pub postgres: Postgres,
    folder: TempDir,
}

impl Deref for Fleet {
    type Target = World;
    fn deref(&self) -> &World {
        &self.world
    }
}

impl Fleet {
    /// Starts this many controllers and hosts.
    ///
    /// # Errors
    /// When RabbitMQ or PostgreSQL is not installed, or anything does not start.
    pub async fn start(controllers: usize, hosts: usize) -> anyhow::Result<Self> {
        Self::start_of(&cmd::program("kring-controller")?, controllers, hosts).await
    }

    /// The same with this program, which may be another version than this harness.
    ///
    /// # Errors
    /// When RabbitMQ or PostgreSQL is not installed, or anything does not start.
    pub async fn start_of(program: &Path, controllers: usize, hosts: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kring-fleet-").tempdir()?;
        let (broker, postgres) = tokio::try_join!(Broker::start(), Postgres::start())?;
        let database_url = postgres.database("kring").await?;
        let database = Database::open(&database_url).await?;
        database.own_clock().await?;
        let mut all = Vec::new();
        for n in 0..controllers {
            let path = folder.path().join(format!("c{}", n + 1));
            all.push(Arc::new(Controller::new(n, path, program, &broker.url, &database_url).await?));
        }
        let first = all.first().context("a fleet has controllers")?;
        let cli = folder.path().join("cli.toml");
        let file = first.config_file();
        let args = ["init", "--config"].map(OsStr::new).into_iter().chain([
            file.as_os_str(),
            "--cli-config".as_ref(),
            cli.as_os_str(),
        ]);
        cmd::run(program.as_os_str(), &args.collect::<Vec<_>>()).await?;
        let (_, ca, token) = Client::parts_of_cli_config(&cli)?;
        let clients: Vec<_> =
            all.iter().map(|c| Client::new(&c.url, &ca, token.as_deref())).collect::<anyhow::Result<_>>()?;
        for (controller, client) in all.iter().zip(&clients) {
            controller.set_client(client.clone());
            controller.start().await?;
        }
        let sim = Arc::new(Sim::new(Options { deferred: 0.3, ..Options::new(&first.url) }));
        sim.history().record();
        let world = World::new(clients.first().context("a fleet has controllers")?.clone(), sim);
        world.ground().await?;
        let value = UpdateSetting { value: 0.5.into() };
        world.api.put::<Setting>("/v1/settings/host.ping_interval", &value).await?;
        for _ in 0..hosts {
            world.host().await?;
        }
        world.sim.set_controllers(all.iter().map(|controller| controller.advertised.clone()));
        let (image, network) = (world.image().await?, world.network_in("10.64.0.0/12").await?);
        let api = Arc::new(Api::new(clients));
        Ok(Self { controllers: all, api, image, network, database, world, broker, postgres, folder })
    }

    /// What the command line prints when an operator calls it so.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn kring(&self, args: &[&str]) -> anyhow::Result<String> {
        let config = self.folder.path().join("cli.toml");
        // A context that is named wins over what the environment says.
        let args = args.iter().copied().chain(["--context", "default", "--config"]).map(OsStr::new);
        let args: Vec<_> = args.chain([config.as_os_str()]).collect();
        cmd::run(cmd::program("kring")?.as_os_str(), &args).await
    }

    /// The active controllers as the database has them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn members(&self) -> anyhow::Result<Vec<ControllerId>> {
        let rows = self.database.pairs("SELECT id, state FROM controller WHERE state = 'active'").await?;
        Ok(rows.iter().map(|(id, _)| id.parse()).collect::<Result<Vec<_>, _>>()?)
    }

    /// Waits until all controllers whose process runs are active members, and nobody else, and each of them has seen
    /// that: what belongs to whom is the same for all.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn whole(&self) -> anyhow::Result<()> {
        eventually("every controller that runs is a member", async || {
            let mut running = Vec::new();
            for controller in &self.controllers {
                if controller.runs().await? {
                    running.push(controller.id()?);
                }
            }
            running.sort_unstable();
            let mut members = self.members().await?;
            members.sort_unstable();
            anyhow::ensure!(members == running, "members: {members:?}, processes: {running:?}");
            let newest = self.database.count("SELECT MAX(generation) FROM ring_change").await?;
            for controller in &self.controllers {
                if controller.runs().await? {
                    let seen: Ownership = controller.api()?.get(&format!("/v1/ring/{}", Uuid::now_v7())).await?;
                    let generation = i64::try_from(seen.generation)?;
                    anyhow::ensure!(generation >= newest, "{} has seen {generation} of {newest}", controller.name);
                }
            }
            Ok(())
        })
        .await
    }

    /// Waits until a controller that was a member is none any more.
    ///
    /// # Errors
    /// When it stays one.
    pub async fn until_taken_over(&self, controller: &Controller) -> anyhow::Result<()> {
        let id = controller.id()?;
        eventually(&format!("others have taken over from {}", controller.name), async || {
            anyhow::ensure!(!self.members().await?.contains(&id), "it is a member");
            Ok(())
        })
        .await
    }

    /// An id that `owner` owns now.
    ///
    /// # Errors
    /// When it is no member.
    pub async fn id_owned_by(&self, owner: ControllerId) -> anyhow::Result<Uuid> {
        let ring = HashRing::new(&self.members().await?);
        let ids = std::iter::repeat_with(Uuid::now_v7).take(100_000);
        ids.into_iter().find(|id| ring.owner(*id) == Some(owner)).context("it owns nothing: it is no member")
    }

    /// How many VMs each member owns.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn owners(&self) -> anyhow::Result<BTreeMap<ControllerId, usize>> {
        let ring = HashRing::new(&self.members().await?);
        let mut owners = BTreeMap::new();
        for (id, _) in self.database.pairs("SELECT id, state FROM vm").await? {
            if let Some(owner) = ring.owner(id.parse()?) {
                *owners.entry(owner).or_default() += 1;
            }
        }
        Ok(owners)
    }

    /// Has a change of something that belonged to another controller done by way of `through`, and measures
    /// how long that takes from now on.
    ///
    /// # Errors
    /// When it is not done at all.
    pub async fn until_served(&self, id: Uuid, through: usize) -> anyhow::Result<Duration> {
        let body = CreateZone {
            id: Some(ZoneId::from_uuid(id)),
            name: format!("z-{}", id.simple()).parse()?,
            description: String::new(),
        };
        let begin = Instant::now();
        let body = serde_json::to_value(&body)?;
        self.api.send_by(through, Method::POST, "/v1/zones", Some(&body)).await?.read::<serde_json::Value>()?;
        Ok(begin.elapsed())
    }

    /// Takes all faults away: every way is whole, every process runs.
    ///
    /// # Errors
    /// When a controller does not come back.
    pub async fn heal(&self) -> anyhow::Result<()> {
        self.sim.faults().clear();
        self.sim.hosts().iter().for_each(|host| host.set_clock_ahead_ms(0));
        self.database.set_clock_ahead(0).await?;
        for controller in &self.controllers {
            controller.to_broker.set(Link::WHOLE);
            controller.to_database.set(Link::WHOLE);
            controller.from_others.set(Link::WHOLE);
            controller.set_clock_ahead(0)?;
            controller.thaw().await?;
        }
        for controller in &self.controllers {
            controller.ensure_running().await?;
        }
        self.whole().await
    }

    /// Waits until no job is open and nothing is owed, then compares sums with rows, and rows with hosts.
    ///
    /// # Errors
    /// Names what does not fit.
    pub async fn at_rest(&self) -> anyhow::Result<()> {
        self.database.at_rest(&self.sim).await
    }

    /// The same, and compares what was accepted with what was done.
    ///
    /// # Errors
    /// Names what does not fit.
    pub async fn assert_consistent(&self) -> anyhow::Result<Tally> {
        self.at_rest().await?;
        let tally = Tally::take(self).await?;
        tally.check()?;
        Ok(tally)
    }

    /// The logs of all controllers, their last lines, for a failure's report.
    #[must_use]
    pub fn logs(&self, lines: usize) -> String {
        self.controllers.iter().map(|c| format!("--- {}\n{}\n", c.name, c.log_tail(lines))).collect()
    }

    /// Stops everything and waits for it. Without it, all is killed when the fleet is dropped.
    ///
    /// # Errors
    /// When a process cannot be ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.sim.shutdown().await;
        for controller in &self.controllers {
            controller.kill().await?;
        }
        Ok(())
    }
}
