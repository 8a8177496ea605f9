//! `kring-cluster-demo`: three controllers, a message broker, a database server and simulated hosts on this
//! machine; controllers are killed while users work, and what happens is printed. `make cluster-demo` builds
//! and runs it.

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Parser;
use harness::cmd;
use harness::fleet::{Fleet, Load};
use harness::wait::until;

/// Three controllers share the work, and are killed meanwhile.
#[derive(Parser)]
struct Args {
    /// Users at work.
    #[arg(long, default_value_t = 4)]
    users: u64,
    /// Simulated hosts.
    #[arg(long, default_value_t = 6)]
    hosts: usize,
}

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
    let begin = Instant::now();
    say("starting RabbitMQ, PostgreSQL, three controllers and the hosts …")?;
    let fleet = Fleet::start(3, args.hosts).await?;
    say(&format!("  ready after {:.1} s, {} hosts connected", begin.elapsed().as_secs_f64(), args.hosts))?;
    for controller in &fleet.controllers {
        say(&format!("  {}  {}  {}", controller.name, controller.id()?, controller.url))?;
    }
    say(&format!("{} users make, stop, start and delete VMs by way of any controller", args.users))?;
    let load = Load::start(&fleet, args.users, 1);
    more(&load, 30).await?;
    who_owns_what(&fleet).await?;

    let victim = &fleet.controllers[1];
    say(&format!("kill -9 of {}", victim.name))?;
    let lost = fleet.id_owned_by(victim.id()?).await?;
    victim.kill().await?;
    let served = fleet.until_served(lost, 0).await?;
    say(&format!("  what it owned is served by the others after {:.1} s", served.as_secs_f64()))?;
    more(&load, 20).await?;
    who_owns_what(&fleet).await?;
    say(&format!("{} is started again", victim.name))?;
    victim.ensure_running().await?;
    fleet.whole().await?;
    more(&load, 20).await?;
    who_owns_what(&fleet).await?;

    let frozen = &fleet.controllers[2];
    say(&format!("{} is frozen (SIGSTOP)", frozen.name))?;
    let begin = Instant::now();
    frozen.freeze().await?;
    fleet.until_taken_over(frozen).await?;
    say(&format!("  the others have taken over after {:.1} s", begin.elapsed().as_secs_f64()))?;
    frozen.thaw().await?;
    frozen.until_ended().await?;
    say("  it was woken (SIGCONT), found that others act for it, and ended without doing anything")?;
    frozen.ensure_running().await?;

    let stopped = &fleet.controllers[0];
    say(&format!("{} is stopped in order, and started again", stopped.name))?;
    stopped.stop().await?;
    more(&load, 10).await?;
    stopped.ensure_running().await?;
    more(&load, 10).await?;

    say("the users end what they are doing; everything is counted")?;
    let problems = load.end().await;
    fleet.heal().await?;
    let tally = fleet.assert_consistent().await?;
    say(&format!("  {tally}"))?;
    say("  database, reservations and hosts fit each other")?;
    tokio::time::timeout(Duration::from_secs(60), fleet.stop()).await??;
    anyhow::ensure!(problems.is_empty(), "users were told: {}", problems.join("\n"));
    say("everything is stopped and removed")?;
    Ok(())
}

/// Waits until the users have seen this many more jobs end.
async fn more(load: &Load, jobs: usize) -> anyhow::Result<()> {
    let (from, begin) = (load.done(), Instant::now());
    until("jobs end", async || load.done() >= from + jobs).await?;
    say(&format!("  {} jobs ended in {:.1} s", load.done() - from, begin.elapsed().as_secs_f64()))?;
    Ok(())
}

async fn who_owns_what(fleet: &Fleet) -> anyhow::Result<()> {
    let owners = fleet.owners().await?;
    for controller in &fleet.controllers {
        let id = controller.id()?;
        let state = if fleet.members().await?.contains(&id) { "member" } else { "gone" };
        say(&format!("  {}  {state:6}  owns {} VMs", controller.name, owners.get(&id).copied().unwrap_or_default()))?;
    }
    Ok(())
}
