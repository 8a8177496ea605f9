//! The smaller areas, and how their values are checked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use shared::units::Bytes;

use crate::agent_client::HostLimits;
use crate::bus::{Limits, Loopback, rabbit};
use crate::db::dialect::Dialect;

/// `[database]`
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite:…` or `postgres://…`; empty: a file in the data folder. May hold a password.
    #[serde(deserialize_with = "database_url")]
    pub url: String,
    /// File with `user:password` for PostgreSQL.
    #[serde(deserialize_with = "file_or_none")]
    pub credentials_file: Option<PathBuf>,
}

impl DatabaseConfig {
    /// Takes user and password from the file, when there is one. Answers what is wrong with it.
    pub(super) fn take_credentials(&mut self) -> Result<(), String> {
        let Some(path) = &self.credentials_file else { return Ok(()) };
        let text =
            std::fs::read_to_string(path).map_err(|e| format!("database.credentials_file {}: {e}", path.display()))?;
        let (user, password) = text
            .trim_end_matches(['\r', '\n'])
            .split_once(':')
            .ok_or_else(|| format!("database.credentials_file {}: must be one line user:password", path.display()))?;
        let Some((scheme, rest)) = self.url.split_once("://") else {
            return Err("database.credentials_file is for postgres://: give database.url too".to_string());
        };
        let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
        let from = rest[..authority_end].rfind('@').map_or(0, |at| at + 1);
        self.url = format!("{scheme}://{}:{}@{}", escaped(user), escaped(password), &rest[from..]);
        Ok(())
    }
}

/// Text as a part of a URL that has no meaning of its own.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl std::fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        f.debug_struct("DatabaseConfig")
            .field("url", &format_args!("{scheme:?}"))
            .field("credentials_file", &self.credentials_file)
            .finish()
    }
}

/// `[bus]`
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// `amqp://…` or `amqps://…` of the message broker; empty: this controller is alone. May hold a
    /// password.
    #[serde(deserialize_with = "broker_url")]
    pub url: String,
    /// Certificates of the authorities that may vouch for the broker; `None`: the system's.
    #[serde(deserialize_with = "file_or_none")]
    pub ca_file: Option<PathBuf>,
    /// File with `user:password` for the broker.
    #[serde(deserialize_with = "file_or_none")]
    pub credentials_file: Option<PathBuf>,
    /// Messages that the broker may send of each queue before they are acknowledged.
    #[serde(deserialize_with = "positive")]
    pub prefetch: u16,
    /// Way of messages whose owner is this controller.
    pub loopback: Loopback,
    /// Messages that may wait for one resource.
    #[serde(deserialize_with = "positive")]
    pub max_per_resource: usize,
    /// Messages that one service may have waiting and in flight.
    #[serde(deserialize_with = "positive")]
    pub max_per_service: usize,
    /// The same for certain services, by name.
    #[serde(deserialize_with = "positive_each")]
    pub service_limits: BTreeMap<String, usize>,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca_file: None,
            credentials_file: None,
            prefetch: 256,
            loopback: Loopback::Direct,
            max_per_resource: 256,
            max_per_service: 65_536,
            service_limits: BTreeMap::new(),
        }
    }
}

impl std::fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        f.debug_struct("BusConfig")
            .field("url", &format_args!("{scheme:?}"))
            .field("ca_file", &self.ca_file)
            .field("credentials_file", &self.credentials_file)
            .field("prefetch", &self.prefetch)
            .field("loopback", &self.loopback)
            .field("max_per_resource", &self.max_per_resource)
            .field("max_per_service", &self.max_per_service)
            .field("service_limits", &self.service_limits)
            .finish()
    }
}

impl BusConfig {
    /// The bounds of the bus.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        Limits { per_resource: self.max_per_resource, per_service: self.max_per_service as u64 }
    }

    /// The broker, when there is one.
    #[must_use]
    pub fn broker(&self) -> Option<rabbit::Settings> {
        (!self.url.is_empty()).then(|| rabbit::Settings {
            url: self.url.clone(),
            ca_file: self.ca_file.clone(),
            credentials_file: self.credentials_file.clone(),
            prefetch: self.prefetch,
        })
    }
}

/// `[hosts]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostsConfig {
    /// TLS sessions with hosts that are remembered.
    pub tls_sessions: usize,
    /// Commands that one host is given at a time.
    #[serde(deserialize_with = "positive")]
    pub max_commands: usize,
    /// Failed connections in a row after which commands to a host fail at once.
    #[serde(deserialize_with = "positive")]
    pub breaker_failures: u32,
}

impl HostsConfig {
    /// What one host may cost.
    #[must_use]
    pub const fn limits(&self) -> HostLimits {
        HostLimits { commands: self.max_commands, failures: self.breaker_failures }
    }
}

impl Default for HostsConfig {
    fn default() -> Self {
        Self { tls_sessions: 100_000, max_commands: 64, breaker_failures: 5 }
    }
}

/// `[pki]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PkiConfig {
    /// Life of a host's certificate, in days.
    #[serde(deserialize_with = "positive")]
    pub host_days: u32,
    /// Life of the controller's certificate, in days.
    #[serde(deserialize_with = "positive")]
    pub controller_days: u32,
}

impl Default for PkiConfig {
    fn default() -> Self {
        Self { host_days: 90, controller_days: 90 }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged.
    pub filter: String,
    /// How.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// To the system journal, with its fields.
    Journald,
}

/// `[tracing]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingConfig {
    /// Collector that spans are sent to by OTLP (HTTP); empty: none are made.
    pub otlp_endpoint: String,
    /// Part of the traces that begin here which is recorded, 0 to 1.
    #[serde(deserialize_with = "part")]
    pub sample: f64,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { otlp_endpoint: String::new(), sample: 1.0 }
    }
}

fn part<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    let part = f64::deserialize(d)?;
    if (0.0..=1.0).contains(&part) { Ok(part) } else { Err(D::Error::custom("must be between 0.0 and 1.0")) }
}

pub(super) fn absolute<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    let plain = |path: &Path| path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain(&path) {
        Ok(path)
    } else {
        Err(D::Error::custom("must be an absolute path without `..`, such as /var/lib/kring"))
    }
}

pub(super) fn size<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
    String::deserialize(d)?.parse().map_err(D::Error::custom)
}

pub(super) fn positive<'de, D: Deserializer<'de>, T: TryFrom<i64>>(d: D) -> Result<T, D::Error> {
    let n = i64::deserialize(d)?;
    T::try_from(n).ok().filter(|_| n > 0).ok_or_else(|| D::Error::custom("must be a whole number above 0"))
}

fn positive_each<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, usize>, D::Error> {
    let limits = BTreeMap::<String, i64>::deserialize(d)?;
    let number = |(name, n): (String, i64)| match usize::try_from(n) {
        Ok(n) if n > 0 => Ok((name, n)),
        _ => Err(D::Error::custom(format!("{name} must be a whole number above 0"))),
    };
    limits.into_iter().map(number).collect()
}

pub(super) fn loopback_or_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(None);
    }
    let address: SocketAddr = text.parse().map_err(|_| D::Error::custom("must be ADDRESS:PORT, or empty"))?;
    if address.ip().is_loopback() {
        Ok(Some(address))
    } else {
        Err(D::Error::custom(
            "must be a loopback address, such as 127.0.0.1:8080: without TLS, tokens could be read on the way",
        ))
    }
}

pub(super) fn names<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(d)?;
    let is_label = |l: &str| {
        (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && !l.starts_with('-')
    };
    match names.iter().find(|name| name.parse::<IpAddr>().is_err() && !name.split('.').all(is_label)) {
        None => Ok(names),
        Some(bad) => Err(D::Error::custom(format!("\"{bad}\" is neither a DNS name nor an address"))),
    }
}

fn broker_url<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let url = String::deserialize(d)?;
    match url.is_empty() {
        true => Ok(url),
        // The URL may hold a password, so it is not repeated.
        false => {
            rabbit::settings::check_url(&url).map(|()| url).map_err(|e| D::Error::custom(format!("{e}, or be empty")))
        }
    }
}

fn file_or_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(d)?;
    match (path.as_os_str().is_empty(), path.is_absolute()) {
        (true, _) => Ok(None),
        (false, true) => Ok(Some(path)),
        (false, false) => Err(D::Error::custom("must be an absolute path, or empty")),
    }
}

fn database_url<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let url = String::deserialize(d)?;
    match url.is_empty() || Dialect::of(&url).is_ok() {
        true => Ok(url),
        // The URL may hold a password, so it is not repeated.
        false => Err(D::Error::custom("must be empty, or begin with sqlite: or postgres://")),
    }
}
