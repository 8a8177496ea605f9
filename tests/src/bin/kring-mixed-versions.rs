//! `kring-mixed-versions`: a fleet of an older version's controllers is upgraded to this version one after the
//! other and taken back, while users work, and everything is counted. `make mixed-versions` builds both.
//!
//! While old and new ones are beside each other, every controller has VMs of every owner made, stopped, started
//! and removed through it, and is sent a message and a field that it does not know.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use controller::bus::{Message, Request};
use controller::cx::Cx;
use harness::broker::Node;
use harness::cmd;
use harness::fleet::{Fleet, Load};
use harness::wait::until;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::api::job::{JobRef, JobState};
use shared::api::vm::{CreateVm, Vm};
use shared::error::Code;
use shared::id::VmId;

/// Controllers of an older version beside those of this one.
#[derive(Parser)]
struct Args {
    /// The older version's `kring-controller`.
    #[arg(long)]
    old: PathBuf,
    /// Do not go back to the older version: it does not start on this version's database.
    #[arg(long)]
    forward_only: bool,
    /// Users at work.
    #[arg(long, default_value_t = 3)]
    users: u64,
}

/// Jobs of users that must end before the next controller's turn.
const BETWEEN: usize = 10;

fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cmd::until_told_to_end(run()).await
}

async fn run() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let args = Args::parse();
    let new = cmd::program("kring-controller")?;
    say("starting RabbitMQ, PostgreSQL, three old controllers and the hosts …")?;
    let fleet = Fleet::start_of(&args.old, 3, 4).await?;
    let load = Load::start(&fleet, args.users, 1);
    let played = play(&fleet, &load, &args, &new).await;
    let problems = load.end().await;
    played.inspect_err(|_| eprintln!("{}\n{}", fleet.logs(60), problems.join("\n")))?;
    fleet.heal().await?;
    say("the users have ended what they did; everything is counted")?;
    let tally = fleet.assert_consistent().await.inspect_err(|_| eprintln!("{}", fleet.logs(60)))?;
    say(&format!("  {tally}"))?;
    let failed: Vec<_> = fleet.api.history().into_iter().filter(|called| !called.failures.is_empty()).collect();
    say(&format!("  {} requests had to be sent again", failed.len()))?;
    fleet.stop().await?;
    anyhow::ensure!(problems.is_empty(), "users were told: {}", problems.join("\n"));
    anyhow::ensure!(failed.is_empty(), "controllers were stopped in order, and yet: {failed:#?}");
    Ok(())
}

/// Upgrades one after the other, and takes them back in the same order.
async fn play(fleet: &Fleet, load: &Load, args: &Args, new: &Path) -> anyhow::Result<()> {
    let ways: &[(&str, &Path)] = if args.forward_only { &[("new", new)] } else { &[("new", new), ("old", &args.old)] };
    more(load).await?;
    for (word, program) in ways {
        for (n, controller) in fleet.controllers.iter().enumerate() {
            controller.stop().await?;
            controller.set_program(program);
            controller.start().await?;
            fleet.whole().await?;
            say(&format!("{} is {word}", controller.name))?;
            more(load).await?;
            // One old and two new ones, whichever way.
            if (*word, n) == ("new", 1) || (*word, n) == ("old", 0) {
                through_each(fleet).await?;
                strange_messages(fleet).await?;
            }
        }
    }
    Ok(())
}

/// Waits until the users have seen some more jobs end.
async fn more(load: &Load) -> anyhow::Result<()> {
    let goal = load.done() + BETWEEN;
    until("jobs end", async || load.done() >= goal).await
}

/// The life of one VM for each pair of controllers: who is asked, and whose it is.
async fn through_each(fleet: &Fleet) -> anyhow::Result<()> {
    for through in 0..fleet.controllers.len() {
        for owner in &fleet.controllers {
            let id = VmId::from_uuid(fleet.id_owned_by(owner.id()?).await?);
            let body = CreateVm { id: Some(id), ..fleet.vm_body(&fleet.image, &fleet.network) };
            let path = format!("/v1/vms/{id}");
            let job = async |method: Method, path: &str, body: Option<&Value>| -> anyhow::Result<()> {
                let job: JobRef = fleet.api.send_by(through, method, path, body).await?.read()?;
                let ended = fleet.api.wait_job(job.job_id).await?;
                let name = &fleet.controllers[through].name;
                anyhow::ensure!(ended.state == JobState::Succeeded, "{path} through {name}: {:?}", ended.error);
                Ok(())
            };
            job(Method::POST, "/v1/vms", Some(&serde_json::to_value(&body)?)).await?;
            for verb in ["stop", "start"] {
                job(Method::POST, &format!("{path}/{verb}"), Some(&json!({}))).await?;
            }
            fleet.api.send_by(through, Method::GET, &path, None).await?.read::<Vm>()?;
            job(Method::DELETE, &path, None).await?;
            job(Method::POST, &format!("{path}/expunge"), Some(&json!({}))).await?;
        }
    }
    say("  each controller had VMs of each owner made, stopped, started and removed")?;
    Ok(())
}

/// Known to no version.
#[derive(Clone, Serialize, Deserialize)]
struct Invented {
    n: u32,
}

impl Message for Invented {
    const NAME: &'static str = "vm.Invented";
}

impl Request for Invented {
    type Reply = ();
    const SERVICE: &'static str = "vm";
}

/// A message that every version knows, with a field that none knows.
#[derive(Clone, Serialize, Deserialize)]
struct GetVmOfTomorrow {
    id: VmId,
    invented: Vec<u32>,
}

impl Message for GetVmOfTomorrow {
    const NAME: &'static str = "vm.GetVm";
}

impl Request for GetVmOfTomorrow {
    type Reply = Value;
    const SERVICE: &'static str = "vm";
}

/// What a controller does not know is answered, at once: a message with an error, a field as if it were not there.
async fn strange_messages(fleet: &Fleet) -> anyhow::Result<()> {
    let node = Node::start(fleet.broker.settings(), |_| ());
    node.connected().await?;
    let members = fleet.controllers.iter().map(|controller| controller.id()).collect::<anyhow::Result<Vec<_>>>()?;
    node.ring.install(1, &members);
    for controller in &fleet.controllers {
        let cx = Cx::system(Duration::from_secs(60));
        let said = node.bus.call_at(controller.id()?, &cx, Invented { n: 1 }).await;
        let code = said.err().map(|error| error.code);
        anyhow::ensure!(code == Some(Code::UnknownMessage), "{} answers {code:?}", controller.name);
        let unknown = GetVmOfTomorrow { id: VmId::new(), invented: vec![1] };
        let said = node.bus.call_at(controller.id()?, &cx, unknown).await;
        let code = said.err().map(|error| error.code);
        anyhow::ensure!(code == Some(Code::NotFound), "{} answers {code:?}", controller.name);
    }
    node.leave().await;
    say("  each controller answered a message that it does not know, and read one with a field that it does not")?;
    Ok(())
}
