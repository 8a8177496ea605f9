//! Configuration: one struct per area, each with defaults. `config.default.toml` is embedded, is the
//! manual, and says the same as the defaults here (a test compares them).
//!
//! Order: defaults, then the file, then command line and environment. Unknown keys are refused; an
//! error names the file, the line and the key.

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use shared::units::Bytes;

/// The manual, as `kring-agent config` prints it.
pub const DEFAULT_TOML: &str = include_str!("../config.default.toml");
/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/kring/agent.toml";

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The agent itself.
    pub agent: AgentConfig,
    /// The way to the controllers.
    pub controller: ControllerConfig,
    /// libvirt.
    pub libvirt: LibvirtConfig,
    /// Networks of guests.
    pub network: NetworkConfig,
    /// The image cache.
    pub image: ImageConfig,
    /// Logs.
    pub log: LogConfig,
    /// Where spans go.
    pub tracing: TracingConfig,
}

/// `[tracing]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingConfig {
    /// Collector that spans are sent to by OTLP (HTTP); empty: none are made.
    pub otlp_endpoint: String,
}

/// `[agent]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Address and port that controllers connect to.
    pub listen: SocketAddr,
    /// What outlives a reboot: identity, image cache, serial logs.
    #[serde(deserialize_with = "absolute")]
    pub data_dir: PathBuf,
    /// What does not: pid files, configuration of dnsmasq.
    #[serde(deserialize_with = "absolute")]
    pub run_dir: PathBuf,
    /// Connections at a time; more wait in the kernel.
    pub max_connections: usize,
    /// How long a command may take to be answered with its outcome, in milliseconds; a longer one is
    /// answered with `202`, and its outcome posted to the callback.
    pub quick_ms: u64,
    /// Commands that wait or run at a time; more are answered with `unavailable`.
    pub max_tasks: usize,
    /// Commands that wait for one resource; more are answered with `unavailable`.
    pub max_queue: usize,
    /// Finished tasks that are remembered.
    pub keep_tasks: usize,
    /// How long a finished task is remembered, in seconds.
    pub keep_tasks_s: u64,
    /// How long running tasks may go on when the agent stops, in seconds.
    pub stop_grace_s: u64,
}

/// `[controller]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControllerConfig {
    /// Addresses of controllers, tried before those that the controllers tell of and those of the join.
    pub urls: Vec<String>,
    /// How long a request to a controller may take, in seconds.
    pub timeout_s: u64,
}

/// `[libvirt]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LibvirtConfig {
    /// The driver to connect to.
    pub uri: String,
    /// Calls that run at a time, each on a thread of its own.
    pub pool: usize,
    /// How long one call may take before libvirt counts as hung, in seconds.
    pub call_timeout_s: u64,
    /// How often a lost connection is tried again, in seconds.
    pub reconnect_s: u64,
    /// Folder of the sockets by which guests come in from other hosts and leave; QEMU's user must be able to
    /// use the folder that it lies in. The same on all hosts.
    #[serde(deserialize_with = "absolute")]
    pub migration_dir: PathBuf,
    /// How guests run: `auto`, `kvm` or `emulated`.
    pub virt_mode: VirtModeChoice,
}

/// How guests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VirtModeChoice {
    /// By the processor when it can, emulated otherwise.
    #[default]
    Auto,
    /// By the processor.
    Kvm,
    /// Emulated.
    Emulated,
}

/// `[network]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Resolvers for guests whose network names none; empty: those of the host.
    pub dns: Vec<IpAddr>,
    /// Whether guests may only send from their own addresses, and nothing that a DHCP server sends
    /// (nwfilter `kring-guest`, which is libvirt's `clean-traffic` and more).
    pub anti_spoofing: bool,
    /// How long a program (ip, nft, dnsmasq) may take, in seconds.
    pub command_timeout_s: u64,
    /// How often networks are looked at for parts that were lost, in seconds.
    pub repair_s: u64,
}

/// `[image]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// The cache; empty: `images` in the data folder. Volumes are based on its files: it must stay.
    #[serde(deserialize_with = "absolute_or_empty")]
    pub cache_dir: PathBuf,
    /// Largest download, whatever a command allows.
    #[serde(deserialize_with = "size")]
    pub max_download: Bytes,
    /// Space that a download leaves free on the cache's file system.
    #[serde(deserialize_with = "size")]
    pub keep_free: Bytes,
    /// Downloads at a time; more wait.
    pub max_parallel: usize,
    /// How long a server may send nothing, in seconds.
    pub stall_timeout_s: u64,
    /// How often a download that broke off is resumed.
    pub retries: u32,
    /// Redirects that are followed.
    pub max_redirects: usize,
    /// Whether an image may be downloaded from this host itself: its loopback address or another of
    /// its own.
    pub allow_loopback: bool,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged, such as `info` or `info,agent::libvirt=debug`.
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
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
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            data_dir: "/var/lib/kring-agent".into(),
            run_dir: "/run/kring-agent".into(),
            max_connections: 256,
            quick_ms: 250,
            max_tasks: 512,
            max_queue: 16,
            keep_tasks: 2048,
            keep_tasks_s: 3600,
            stop_grace_s: 20,
        }
    }
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self { urls: Vec::new(), timeout_s: 15 }
    }
}

impl Default for LibvirtConfig {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".into(),
            pool: 8,
            call_timeout_s: 30,
            reconnect_s: 2,
            migration_dir: "/var/lib/libvirt/qemu/kring".into(),
            virt_mode: VirtModeChoice::Auto,
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { dns: Vec::new(), anti_spoofing: true, command_timeout_s: 20, repair_s: 15 }
    }
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            cache_dir: PathBuf::new(),
            max_download: Bytes::gib(200),
            keep_free: Bytes::mib(512),
            max_parallel: 4,
            stall_timeout_s: 30,
            retries: 5,
            max_redirects: 5,
            allow_loopback: false,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

impl LibvirtConfig {
    /// The socket of libvirt on this host: of the one daemon, or of that for QEMU where there are several.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let known = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"].map(PathBuf::from);
        known.iter().find(|path| path.exists()).unwrap_or(&known[0]).clone()
    }
}

impl ControllerConfig {
    /// How long a request to a controller may take.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file does not say what it must; the text shows line, column and key.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column, key and what is wrong.
        message: String,
    },
}

impl Config {
    /// Reads a file; without one the default file, and the defaults when there is none.
    ///
    /// # Errors
    /// See [`Error`]; a file that was named must exist.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let named = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(named) {
            Ok(text) => Self::parse(&text, named),
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(Error::Read { path: named.to_owned(), source }),
        }
    }

    /// Reads a configuration from text; `path` is named in errors.
    ///
    /// # Errors
    /// `Parse`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        toml::from_str(text)
            .map_err(|e| Error::Parse { path: path.to_owned(), message: e.to_string().trim_end().to_string() })
    }

    /// The folder of the image cache.
    #[must_use]
    pub fn image_dir(&self) -> PathBuf {
        if self.image.cache_dir.as_os_str().is_empty() {
            self.agent.data_dir.join("images")
        } else {
            self.image.cache_dir.clone()
        }
    }
}

/// Whether a path is absolute and says where it leads: no `.`, no `..`.
#[must_use]
pub fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        && path.as_os_str().len() < 1024
}

fn absolute<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    if is_plain_absolute(&path) {
        Ok(path)
    } else {
        Err(serde::de::Error::custom("must be an absolute path without `..`, such as /var/lib/kring-agent"))
    }
}

fn absolute_or_empty<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    if path.as_os_str().is_empty() || is_plain_absolute(&path) {
        Ok(path)
    } else {
        Err(serde::de::Error::custom("must be empty or an absolute path without `..`"))
    }
}

fn size<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_manual_says_what_the_defaults_say() {
        let parsed = Config::parse(DEFAULT_TOML, Path::new("config.default.toml")).unwrap();
        assert_eq!(parsed, Config::default());
    }

    #[test]
    fn the_manual_names_every_key() {
        let debug = format!("{:#?}", Config::default());
        for line in debug.lines().filter(|l| l.starts_with("        ")) {
            let key = line.trim().split(':').next().unwrap_or_default();
            if key.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !key.is_empty() {
                assert!(DEFAULT_TOML.contains(&format!("\n{key} = ")), "{key} is missing in the manual");
            }
        }
    }

    #[test]
    fn an_error_names_file_line_and_key() {
        let path = Path::new("/etc/kring/agent.toml");
        let unknown = Config::parse("[agent]\nlisen = \"1.2.3.4:1\"\n", path).unwrap_err().to_string();
        for part in ["/etc/kring/agent.toml", "line 2", "lisen"] {
            assert!(unknown.contains(part), "{unknown}");
        }
        let bad = Config::parse("[agent]\n\ndata_dir = \"relative\"\n", path).unwrap_err().to_string();
        for part in ["line 3", "data_dir", "absolute path"] {
            assert!(bad.contains(part), "{bad}");
        }
    }

    #[test]
    fn a_path_that_climbs_is_not_plain() {
        for bad in ["", "a/b", "/a/../b", "/a/..", "../x"] {
            assert!(!is_plain_absolute(Path::new(bad)), "{bad}");
        }
        assert!(is_plain_absolute(Path::new("/var/lib/kring")));
    }
}
