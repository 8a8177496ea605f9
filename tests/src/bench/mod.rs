//! Benchmarks: programs that print figures, and never a verdict.
//!
//! Each writes a table for people, `target/bench/<name>.json` for programs and, of what was measured at several
//! sizes, a plot beside it. Beside every wall time
//! stand the CPU seconds of the processes and the share of time that others took from the machine.

pub mod api;
pub mod bus;
mod bus_broker;
pub mod create;
mod flight;
pub mod floor;
pub mod host;
pub mod hosts;
pub mod idle;
pub mod load;
pub mod placement;
pub mod plot;
pub mod process;
pub mod query;
pub mod queues;
pub mod restart;
pub mod ring;
pub mod seed;
pub mod soak;
pub mod start;
pub mod takeover;

use std::collections::BTreeMap;
use std::path::PathBuf;

use process::{Usage, Used};
use serde::Serialize;
use shared::api::page::Page;
use shared::api::setting::Setting;

use crate::client::Client;

/// The database that is used when no other is asked for, the other one, and what needs none.
const SQLITE: &str = "SQLite";
const POSTGRES: &str = "PostgreSQL";
const NONE: &str = "no database";

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// In what.
    pub unit: &'static str,
    /// What it should be, in words; empty when nothing is asked.
    pub target: &'static str,
}

/// How a figure grows with the size.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// What was measured.
    pub name: String,
    /// In what.
    pub unit: &'static str,
    /// Size and value.
    pub points: Vec<(f64, f64)>,
}

/// What one benchmark found, and where.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The benchmark.
    pub bench: &'static str,
    /// Release of Kring.
    pub version: &'static str,
    /// Processors of the machine, and their model.
    pub machine: String,
    /// Release of its kernel.
    pub kernel: String,
    /// The database.
    pub database: &'static str,
    /// What else was in use, with its version.
    pub versions: BTreeMap<&'static str, String>,
    /// Whether the programs were optimised.
    pub profile: &'static str,
    /// Settings of the controller that are not as they are shipped.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// What was asked for on the command line: sizes, hosts, interval.
    pub arguments: Vec<String>,
    /// Who used the processors while it ran.
    #[serde(flatten)]
    pub used: Used,
    /// The figures.
    pub figures: Vec<Figure>,
    /// Those of them that were measured at several sizes, over the size.
    pub growth: Vec<Series>,
}

/// Collects the figures of a benchmark from its begin.
pub struct Bench {
    report: Report,
    /// What the files are called.
    file: String,
    begin: Usage,
    of: String,
}

impl Bench {
    /// Begins a benchmark.
    ///
    /// # Errors
    /// When the kernel does not tell its times.
    pub fn begin(bench: &'static str) -> anyhow::Result<Self> {
        let profile = if cfg!(debug_assertions) { "debug: figures mean nothing" } else { "release" };
        let server = std::env::var_os("KRING_TEST_POSTGRES").is_some();
        let (database, file) =
            if server { (POSTGRES, format!("{bench}-postgresql")) } else { (SQLITE, bench.to_string()) };
        // Told by who has built this.
        let commit = std::env::var("KRING_COMMIT").ok();
        let report = Report {
            bench,
            version: env!("CARGO_PKG_VERSION"),
            machine: process::machine(),
            kernel: process::kernel(),
            database,
            versions: commit.map(|commit| ("commit", commit)).into_iter().collect(),
            settings: BTreeMap::new(),
            profile,
            arguments: std::env::args().skip(1).collect(),
            used: Used::default(),
            figures: Vec::new(),
            growth: Vec::new(),
        };
        Ok(Self { report, file, begin: Usage::now()?, of: String::new() })
    }

    /// Whatever database was asked for, this is about another one, or none.
    #[must_use]
    pub fn on(mut self, database: &'static str) -> Self {
        (self.report.database, self.file) = (database, self.report.bench.to_string());
        self
    }

    /// Notes the settings of a controller that are not as they are shipped.
    ///
    /// # Errors
    /// When it does not tell them.
    pub async fn settings_of(&mut self, api: &Client) -> anyhow::Result<()> {
        let all: Page<Setting> = api.get("/v1/settings?limit=1000").await?;
        let changed = all.items.into_iter().filter(|setting| setting.value != setting.default);
        self.report.settings.extend(changed.map(|setting| (setting.key, setting.value)));
        Ok(())
    }

    /// Notes the version of something that is in use.
    pub fn version(&mut self, what: &'static str, version: impl Into<String>) {
        self.report.versions.insert(what, version.into());
    }

    /// Adds a figure.
    pub fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: &'static str) {
        self.report.figures.push(Figure { name: name.into(), value, unit, target });
    }

    /// Adds a figure that is measured at several sizes, `of` what is counted by them. A ratio to what was too short for
    /// the kernel to count is left out.
    pub fn point(
        &mut self,
        (size, of): (usize, &str),
        name: &str,
        value: f64,
        unit: &'static str,
        target: &'static str,
    ) {
        if !value.is_finite() && target.is_empty() {
            return;
        }
        self.figure(format!("{size} {of}: {name}"), value, unit, target);
        let at = (size as f64, value);
        match self.report.growth.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(at),
            None => self.report.growth.push(Series { name: name.to_string(), unit, points: vec![at] }),
        }
        self.of = of.to_string();
    }

    /// Prints the figures, writes them down, and draws how they grow.
    ///
    /// # Errors
    /// When the file cannot be written.
    #[expect(clippy::print_stdout, reason = "printing is what a benchmark is for")]
    pub fn end(mut self) -> anyhow::Result<()> {
        self.report.used = Usage::now()?.since(&self.begin);
        let Report { bench, machine, database, profile, used, figures, growth, .. } = &self.report;
        let Used { stolen, cpu_of_bench, cpu_of_programs, cpu_of_machine } = used;
        println!("{bench}  ({machine}; {database}; {profile}; {:.0} % of the time stolen)", stolen * 100.0);
        println!(
            "  processor seconds: {cpu_of_bench:.1} of clients and simulated hosts, {cpu_of_programs:.1} of what they started, {cpu_of_machine:.1} of the machine"
        );
        for Figure { name, value, unit, target } in figures {
            let target = if target.is_empty() { String::new() } else { format!("(asked: {target})") };
            println!("  {name:<44} {value:>14.3} {unit:<8} {target}");
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")));
        // What tests print has no meaning, and must not take the place of what has.
        let dir = target.join(if cfg!(debug_assertions) { "bench/debug" } else { "bench" });
        std::fs::create_dir_all(&dir)?;
        let file = &self.file;
        std::fs::write(dir.join(format!("{file}.json")), serde_json::to_vec_pretty(&self.report)?)?;
        if growth.iter().any(|line| line.points.len() > 1) {
            std::fs::write(dir.join(format!("{file}.svg")), plot::svg(bench, &self.of, growth))?;
        }
        Ok(())
    }
}

/// The value below which `share` of the sorted `values` lie.
#[must_use]
pub fn quantile(values: &[u32], share: f64) -> f64 {
    let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(at).copied().map_or(f64::NAN, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let values: Vec<u32> = (0..100).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)), (50.0, 99.0, 99.0));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
