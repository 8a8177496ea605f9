//! `kring status`: an overview on one screen.

use clap::Args;
use serde_json::{Value, json};
use shared::api::host::{Host, HostConnection};
use shared::state::vm::VmState;
use shared::units::Bytes;

use crate::client::list::Query;
use crate::context::Ctx;
use crate::error::Result;
use crate::output::table::{Cell, Tone, fields};
use crate::output::view::parse;
use crate::output::{colours, line, value};

/// Characters of a bar.
const BAR: u64 = 20;

/// `kring status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kring status\n  kring status -o json")]
pub struct Status {}

/// What there is, summed up.
#[derive(Debug, Default)]
struct Sums {
    connected: u64,
    away: Vec<String>,
    vcpus: (u64, u64),
    memory: (Bytes, Bytes),
}

impl Sums {
    fn of(hosts: &[Host]) -> Self {
        let mut sums = Self::default();
        for host in hosts {
            if host.connection == HostConnection::Connected {
                sums.connected += 1;
                sums.vcpus.0 += u64::from(host.capacity.vcpus_reserved);
                sums.vcpus.1 += u64::from(host.capacity.vcpus_total);
                sums.memory.0 = sums.memory.0 + host.capacity.memory_reserved;
                sums.memory.1 = sums.memory.1 + host.capacity.memory_total;
            } else {
                sums.away.push(format!("{} {}", host.name, host.connection));
            }
        }
        sums
    }
}

/// Asks for what there is and prints it.
pub async fn run(ctx: &Ctx, _args: Status) -> Result<()> {
    let client = &ctx.client;
    let listing = client.list("/hosts", &Query::default()).await?;
    let hosts: Vec<Host> = listing.items.iter().map(parse).collect::<Result<_>>()?;
    let sums = Sums::of(&hosts);
    let mut vms = Vec::new();
    let total = client.count("/vms", None).await?;
    let mut seen = 0;
    for state in VmState::ALL {
        if seen >= total {
            break;
        }
        let n = client.count("/vms", Some(&format!("state = {state}"))).await?;
        seen += n;
        if n > 0 {
            vms.push((state.as_str(), n));
        }
    }
    vms.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let busy = client.count("/jobs", Some("state in (queued, running, rolling_back)")).await?;
    if !ctx.for_people() {
        return value(&as_json(ctx, &hosts, &sums, &vms, total, busy), ctx.format);
    }
    let mut host_cells = vec![Cell::new(format!("{} connected", sums.connected)).tone(Tone::Good)];
    host_cells.extend(sums.away.iter().map(|away| Cell::new(away).tone(Tone::Bad)));
    if hosts.is_empty() {
        host_cells = vec![Cell::new("none yet; let one join: kring host join-token")];
    }
    let states = vms.iter().map(|(state, n)| format!("{n} {state}")).collect::<Vec<_>>().join(", ");
    let vm_text = if total == 0 { "none yet; make one: kring vm create --help".into() } else { states };
    let at = ctx.context.as_ref().map(|name| format!("  (context {name})")).unwrap_or_default();
    let mut pairs = vec![
        ("controller".to_string(), vec![Cell::new(format!("{}{at}", client.url()))]),
        ("hosts".to_string(), host_cells),
        ("vms".to_string(), vec![Cell::new(vm_text)]),
    ];
    if sums.connected > 0 {
        let (used, all) = sums.vcpus;
        pairs.push(("vcpus".into(), vec![Cell::new(format!("{} {used} of {all} reserved", bar(used, all)))]));
        let (used, all) = sums.memory;
        pairs.push(("memory".into(), vec![Cell::new(format!("{} {used} of {all} reserved", bar(used.0, all.0)))]));
    }
    pairs.push((
        "jobs".to_string(),
        vec![Cell::new(if busy == 0 { "none going on".into() } else { format!("{busy} going on") })],
    ));
    line(&fields(&pairs, colours()))
}

fn as_json(ctx: &Ctx, hosts: &[Host], sums: &Sums, vms: &[(&str, u64)], total: u64, busy: u64) -> Value {
    let states: serde_json::Map<String, Value> = vms.iter().map(|(s, n)| ((*s).to_string(), json!(n))).collect();
    json!({
        "controller": ctx.client.url().as_str(),
        "context": ctx.context,
        "hosts": {"total": hosts.len(), "connected": sums.connected},
        "vms": {"total": total, "by_state": states},
        "capacity": {
            "vcpus_total": sums.vcpus.1,
            "vcpus_reserved": sums.vcpus.0,
            "memory_total": sums.memory.1,
            "memory_reserved": sums.memory.0,
        },
        "jobs": {"going_on": busy},
    })
}

fn bar(used: u64, all: u64) -> String {
    let filled = if all == 0 { 0 } else { (u128::from(used.min(all)) * u128::from(BAR) / u128::from(all)) as usize };
    format!("[{}{}]", "=".repeat(filled), " ".repeat(BAR as usize - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_one_length() {
        for (used, all) in [(0, 0), (0, 5), (5, 5), (9, 5), (1, u64::MAX)] {
            assert_eq!(bar(used, all).len(), BAR as usize + 2, "{used} of {all}");
        }
        assert_eq!(bar(1, 2), "[==========          ]");
    }
}
