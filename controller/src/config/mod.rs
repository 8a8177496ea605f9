//! Configuration: one struct per area, with defaults. `config.default.toml` is embedded, is the
//! manual, and says the same as the defaults here (a test compares them).
//!
//! Order: defaults, the file, the environment, `--set`. Unknown keys are refused; an error names the
//! file, the key and the line, or the variable, or the option.

mod api;
mod area;
mod load;
mod services;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use api::ApiConfig;
pub use area::{BusConfig, DatabaseConfig, HostsConfig, LogConfig, LogFormat, PkiConfig, TracingConfig};
pub use load::{Error, Source};
pub use services::{NEEDED, OPTIONAL, ServicesConfig};

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
    /// Folder on the hosts of the storage that is made at the first start.
    pub default_storage_path: String,
    /// The gateway.
    pub api: ApiConfig,
    /// The database.
    pub database: DatabaseConfig,
    /// The bus.
    pub bus: BusConfig,
    /// What is switched on.
    pub services: ServicesConfig,
    /// The way to the hosts.
    pub hosts: HostsConfig,
    /// Certificates.
    pub pki: PkiConfig,
    /// Logs.
    pub log: LogConfig,
    /// Where spans go.
    pub tracing: TracingConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/kring"),
            default_storage_path: "/var/lib/kring-agent/storage".to_string(),
            api: ApiConfig::default(),
            database: DatabaseConfig::default(),
            bus: BusConfig::default(),
            services: ServicesConfig::default(),
            hosts: HostsConfig::default(),
            pki: PkiConfig::default(),
            log: LogConfig::default(),
            tracing: TracingConfig::default(),
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
        let mut config = load::merge(&sources)?;
        let invalid = |message| Error::Invalid { origin: "the configuration".into(), message };
        config.database.take_credentials().map_err(invalid)?;
        Ok(config)
    }

    /// The configuration that these sources make, the later ones winning.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn from_sources(sources: &[Source]) -> Result<Self, Error> {
        load::merge(sources)
    }

    /// What no key can say alone.
    fn check(&self) -> Result<(), String> {
        let dialect = crate::db::dialect::Dialect::of(&self.database_url());
        if !self.bus.url.is_empty() && dialect.is_ok_and(|dialect| dialect == crate::db::dialect::Dialect::Sqlite) {
            return Err(
                "bus.url names a message broker, but database.url is SQLite, which only one controller can use: \
                        many controllers need both, so give database.url = \"postgres://…\" too, or leave bus.url empty"
                    .to_string(),
            );
        }
        if self.bus.url.is_empty() && (self.bus.ca_file.is_some() || self.bus.credentials_file.is_some()) {
            return Err("bus.ca_file and bus.credentials_file are for a message broker: give bus.url too".to_string());
        }
        Ok(())
    }

    /// The database's URL, also when none is configured.
    #[must_use]
    pub fn database_url(&self) -> String {
        match self.database.url.as_str() {
            "" => crate::db::Db::sqlite_url(&self.data_dir),
            url => url.to_string(),
        }
    }

    /// URL by which agents reach this controller.
    #[must_use]
    pub fn callback_base(&self) -> String {
        if let Some(url) = self.api.advertise.first() {
            return url.trim_end_matches('/').to_string();
        }
        let host = match (self.api.names.first(), self.api.listen.ip()) {
            (Some(name), _) => name.clone(),
            // Listening on one address means being reached there.
            (None, ip) if !ip.is_unspecified() => match ip {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            },
            (None, _) => host_name(),
        };
        format!("https://{host}:{}", self.api.listen.port())
    }

    /// URLs by which agents reach this controller, the one for callbacks first.
    #[must_use]
    pub fn advertised(&self) -> Vec<String> {
        let mut urls = vec![self.callback_base()];
        urls.extend(self.api.advertise.iter().skip(1).cloned());
        urls
    }

    /// URL by which users on this machine reach this controller.
    #[must_use]
    pub fn client_url(&self) -> String {
        match self.api.listen.ip() {
            ip if ip.is_unspecified() => format!("https://127.0.0.1:{}", self.api.listen.port()),
            std::net::IpAddr::V6(ip) => format!("https://[{ip}]:{}", self.api.listen.port()),
            std::net::IpAddr::V4(ip) => format!("https://{ip}:{}", self.api.listen.port()),
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

/// This machine's name, or `localhost` when it has none.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_string())
}
