//! Configuration: one struct per area, with defaults. `config.default.toml` is embedded, is the
//! manual, and says the same as the defaults here (a test compares them).
//!
//! Order: defaults, the file, the environment, `--set`. Unknown keys are refused; an error names the
//! file, the key and the line, or the variable, or the option.

mod api;
mod area;
mod load;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use api::ApiConfig;
pub use area::{BusConfig, DatabaseConfig, HostsConfig, LogConfig, LogFormat, PkiConfig};
pub use load::{Error, Source};

/// The manual, as `kring-controller config` prints it.
pub const DEFAULT_TOML: &str = include_str!("../../config.default.toml");
/// The file that is read when none is named.
pub const DEFAULT_PATH: &str = "/etc/kring/controller.toml";

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder with everything that must be kept.
    #[serde(deserialize_with = "area::absolute")]
    pub data_dir: PathBuf,
    /// The gateway.
    pub api: ApiConfig,
    /// The database.
    pub database: DatabaseConfig,
    /// The bus.
    pub bus: BusConfig,
    /// The way to the hosts.
    pub hosts: HostsConfig,
    /// Certificates.
    pub pki: PkiConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/kring"),
            api: ApiConfig::default(),
            database: DatabaseConfig::default(),
            bus: BusConfig::default(),
            hosts: HostsConfig::default(),
            pki: PkiConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// Reads the configuration of a process: the file (the default one when `file` is `None`, which
    /// may be missing), the environment, and `--set key=value` in order.
    ///
    /// # Errors
    /// See [`Error`]; a file that was named must exist.
    pub fn load(file: Option<&Path>, set: &[String]) -> Result<Self, Error> {
        let mut sources = Vec::new();
        let path = file.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(path) {
            Ok(text) => sources.push(Source::File { path: path.to_owned(), text }),
            Err(e) if file.is_none() && e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        }
        sources.extend(load::from_env(std::env::vars_os()));
        sources.extend(set.iter().map(|text| Source::Set(text.clone())));
        load::merge(&sources)
    }

    /// The configuration that these sources make, the later ones winning.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_sources(sources: &[Source]) -> Result<Self, Error> {
        load::merge(sources)
    }

    /// The database's URL, also when none is configured.
    #[must_use]
    pub fn database_url(&self) -> String {
        match self.database.url.as_str() {
            "" => crate::db::Db::sqlite_url(&self.data_dir),
            url => url.to_string(),
        }
    }

    /// Folder of uploaded images.
    #[must_use]
    pub fn image_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// Folder of the certificate authority and the controller's certificate.
    #[must_use]
    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }
}
