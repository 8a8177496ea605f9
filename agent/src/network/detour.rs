//! The way to the metadata service for guests that take no notice of DHCP's classless routes: they
//! send what is for 169.254.169.254 to their gateway, the host. A routing rule for their bridge hands
//! it on to the network's namespace, which answers them directly.

use serde::Deserialize;
use shared::wire::network::NetworkSpec;

use super::bridge::Names;
use super::{Error, METADATA_ADDRESS, Tools};

/// Routing tables of Kring begin here; those that people number by hand, and those of the kernel, are
/// far below.
const FIRST_TABLE: u64 = 0x4b52_0000;

/// The routing table of a network: its own unless 65,536 others came between; then two networks share
/// one and the newer has the detour, which guests with classless routes do not need.
fn table(names: &Names) -> u64 {
    FIRST_TABLE + u64::from_str_radix(&names.suffix, 16).unwrap_or_default() % 0x1_0000
}

#[derive(Debug, Deserialize)]
struct Rule {
    #[serde(default)]
    dst: String,
}

/// Opens the detour; a success when it is open.
pub async fn open(spec: &NetworkSpec, names: &Names, tools: &Tools<'_>) -> Result<(), Error> {
    let (table, bridge) = (table(names), names.bridge());
    let mut batch =
        format!("route replace {METADATA_ADDRESS}/32 via {} dev {bridge} table {table}\n", spec.service_address);
    if rules(&bridge, tools).await? == 0 {
        batch.push_str(&format!("rule add iif {bridge} to {METADATA_ADDRESS}/32 lookup {table}\n"));
    }
    tools.cmd("ip").args(["-batch", "-"]).stdin(batch).run(tools.cancel).await?;
    Ok(())
}

/// Closes the detour; a success when it is closed. The route goes with the bridge.
pub async fn close(names: &Names, tools: &Tools<'_>) -> Result<(), Error> {
    let bridge = names.bridge();
    for _ in 0..rules(&bridge, tools).await? {
        tools.cmd("ip").args(["rule", "del", "iif", &bridge]).run(tools.cancel).await?;
    }
    Ok(())
}

/// How many rules there are for what comes from a bridge to the metadata service.
async fn rules(bridge: &str, tools: &Tools<'_>) -> Result<usize, Error> {
    let output = tools.cmd("ip").args(["-json", "rule", "show", "iif", bridge]).run(tools.cancel).await?;
    let text = output.text();
    if text.trim().is_empty() {
        return Ok(0);
    }
    let rules: Vec<Rule> = serde_json::from_str(&text).map_err(Error::Ip)?;
    Ok(rules.iter().filter(|rule| rule.dst == METADATA_ADDRESS.to_string()).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_networks_stay_away_from_those_of_others() {
        for (suffix, expected) in [("00000000", FIRST_TABLE), ("ab12cd34", FIRST_TABLE + 0xcd34), ("x", FIRST_TABLE)] {
            assert_eq!(table(&Names { suffix: suffix.into() }), expected);
        }
    }
}
