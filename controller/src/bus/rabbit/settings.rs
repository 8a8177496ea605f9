//! Where the broker is, how it is known to be the right one, and as whom to go there.

use std::fmt;
use std::path::{Path, PathBuf};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Seconds between two signs of life, when the URL does not say (`?heartbeat=`).
const HEARTBEAT_S: u16 = 10;

/// What is needed to go to the broker. Files are read at each attempt, so that new certificates and
/// passwords are taken up without a restart.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `amqp://user:password@host:port/vhost`, or `amqps://…`.
    pub url: String,
    /// Certificates (PEM) of the authorities that may vouch for the broker; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// File with `user:password`, which wins over the URL's.
    pub credentials_file: Option<PathBuf>,
    /// Messages that the broker may send of each queue before they are acknowledged.
    pub prefetch: u16,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        f.debug_struct("Settings")
            .field("url", &format_args!("{scheme:?}"))
            .field("ca_file", &self.ca_file)
            .field("credentials_file", &self.credentials_file)
            .field("prefetch", &self.prefetch)
            .finish()
    }
}

/// Why a broker cannot be gone to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL. It may hold a password, so it is not repeated.
    #[error("must begin with amqp:// or amqps:// and name a host, such as amqp://user:password@broker:5672/vhost")]
    Url,
    /// A file.
    #[error("{path} cannot be read: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file with user and password.
    #[error("{} must hold one line, user:password", .0.display())]
    Credentials(PathBuf),
    /// Certificates of authorities.
    #[error("the certificates of authorities cannot be used: {0}")]
    Authorities(#[source] std::io::Error),
}

/// Whether a text can be the URL of a broker.
///
/// # Errors
/// [`Error::Url`].
pub fn check_url(url: &str) -> Result<(), Error> {
    parse(url).map(drop)
}

fn parse(url: &str) -> Result<AMQPUri, Error> {
    // Where the parser finds no host it takes this machine.
    let rest = url.strip_prefix("amqp://").or_else(|| url.strip_prefix("amqps://")).ok_or(Error::Url)?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') {
        return Err(Error::Url);
    }
    let mut uri: AMQPUri = url.parse().map_err(|_| Error::Url)?;
    // Strictly, "amqp://host/" names a virtual host with the empty name, which nobody has.
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    Ok(uri)
}

/// Where to go, with everything read.
pub(super) struct Destination {
    pub(super) uri: AMQPUri,
    /// Makes TLS of a connection, when there is to be TLS.
    pub(super) tls: Option<RustlsConnector>,
}

impl Settings {
    /// Reads what must be read.
    pub(super) async fn destination(&self) -> Result<Destination, Error> {
        let mut uri = parse(&self.url)?;
        if let Some(path) = &self.credentials_file {
            let text = read(path).await?;
            let pair = text.trim_end_matches(['\r', '\n']).split_once(':');
            let (user, password) = pair.ok_or_else(|| Error::Credentials(path.clone()))?;
            uri.authority.userinfo.username = user.to_string();
            uri.authority.userinfo.password = password.to_string();
        }
        let tls = match (&uri.scheme, &self.ca_file) {
            (AMQPScheme::AMQP, _) => None,
            (AMQPScheme::AMQPS, Some(path)) => Some(trusting(&read(path).await?).map_err(Error::Authorities)?),
            (AMQPScheme::AMQPS, None) => Some(
                RustlsConnectorConfig::new_with_native_certs()
                    .and_then(RustlsConnectorConfig::connector_with_no_client_auth)
                    .map_err(Error::Authorities)?,
            ),
        };
        Ok(Destination { uri, tls })
    }
}

/// TLS that trusts these authorities (PEM) and no others.
fn trusting(pem: &str) -> std::io::Result<RustlsConnector> {
    let invalid = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error: rustls_pki_types::pem::Error| invalid(error.to_string()))?;
    if certificates.is_empty() {
        return Err(invalid("bus.ca_file has no certificate".to_string()));
    }
    let mut config = RustlsConnectorConfig::default();
    config.add_parsable_certificates(certificates);
    config.connector_with_no_client_auth()
}

async fn read(path: &Path) -> Result<String, Error> {
    tokio::fs::read_to_string(path).await.map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_is_read_with_what_the_files_say() {
        for bad in ["", "http://x", "amqp:", "amqp://", "amqp:host", "amqp://h:port", "amqp://u:p@/v"] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
        let folder = tempfile::tempdir().unwrap();
        let credentials = folder.path().join("credentials");
        std::fs::write(&credentials, "kring:se:cret\n").unwrap();
        let mut settings = Settings {
            url: "amqp://a:b@broker/".to_string(),
            ca_file: None,
            credentials_file: Some(credentials.clone()),
            prefetch: 1,
        };
        let uri = settings.destination().await.unwrap().uri;
        assert_eq!((uri.vhost.as_str(), uri.authority.port, uri.query.heartbeat), ("/", 5672, Some(HEARTBEAT_S)));
        let user = uri.authority.userinfo;
        assert_eq!((user.username.as_str(), user.password.as_str()), ("kring", "se:cret"));
        assert!(!format!("{settings:?}").contains("a:b"));
        std::fs::write(&credentials, "kring").unwrap();
        let error = settings.destination().await.err().unwrap().to_string();
        assert!(error.contains("user:password") && !error.contains("kring\n"), "{error}");
        settings.credentials_file = None;
        settings.url = "amqps://broker/%2fx?heartbeat=5".to_string();
        settings.ca_file = Some(folder.path().join("none.pem"));
        assert!(settings.destination().await.err().unwrap().to_string().contains("none.pem"));
    }
}
